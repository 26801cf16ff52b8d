"""Items produced in a thread ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """Yield the same items, produced in a thread.

    Args:
        items: iterated in the thread; an exception that it raises is raised where its item would be yielded.
        depth: how many items are produced ahead of their use.
    """
    results: queue.Queue[Future[T] | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(result: Future[T] | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                results.put(result, timeout=0.1)
                return

    def produce() -> None:
        result: Future[T] = Future()
        try:
            for item in items:
                result.set_result(item)
                put(result)
                result = Future()
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            result.set_exception(error)
            put(result)

    thread = threading.Thread(target=produce, daemon=True, name="prefetch")
    thread.start()
    try:
        while (result := results.get()) is not None:
            yield result.result()
    finally:
        stopped.set()
        thread.join()
