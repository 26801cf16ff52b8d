"""Calls in several threads, for work that waits, such as requests."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mlx_dpo.utils.stop_flag import check_stop

T = TypeVar("T")
R = TypeVar("R")
SECONDS_BETWEEN_CHECKS = 0.1  # of whether a stop was requested


def map_as_completed(function: Callable[[T], R], items: Sequence[T], *, num_threads: int) -> Iterator[tuple[int, R]]:
    """Call a function for each item, and yield (index, result) as the calls end.

    No call begins after the first exception, or once the iteration has ended. Whoever stops iterating, by Ctrl-C too,
    does not wait for calls that are still running: their threads are daemons.

    Args:
        function: is called in other threads.
        items: its arguments.
        num_threads: simultaneous calls.

    Raises:
        Exception: the first that a call raises; results before it have been yielded.
    """
    stopped = threading.Event()
    waiting: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[int, R] | BaseException] = queue.SimpleQueue()
    for item in enumerate(items):
        waiting.put(item)

    def work() -> None:
        while not stopped.is_set():
            try:
                i, item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((i, function(item)))
            except BaseException as error:
                ended.put(error)
                return

    for _ in range(min(num_threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            result = _wait_for(ended)
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopped.set()


def _wait_for(ended: queue.SimpleQueue[T]) -> T:
    while True:
        check_stop()
        try:
            return ended.get(timeout=SECONDS_BETWEEN_CHECKS)
        except queue.Empty:
            continue
