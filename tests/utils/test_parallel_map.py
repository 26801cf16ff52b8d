"""Calls in several threads: all results, and no more calls after a failure or the end of the iteration."""

from __future__ import annotations

import threading
import time

import pytest

from mlx_dpo.utils.parallel_map import map_as_completed
from mlx_dpo.utils.stop_flag import StopRequested, stop_on


def test_every_item_is_called_once() -> None:
    threads = set()

    def square(item: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.002)
        return item**2

    results = list(map_as_completed(square, range(30), num_threads=4))
    assert sorted(results) == [(i, i**2) for i in range(30)] and 1 < len(threads) <= 4
    assert list(map_as_completed(square, [], num_threads=4)) == []


def test_a_failure_ends_it_after_what_came_before() -> None:
    called: list[int] = []

    def fail_at_three(item: int) -> int:
        called.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    results: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="three"):
        for result in map_as_completed(fail_at_three, range(100), num_threads=1):
            results.append(result)
    assert results == [(i, i) for i in range(3)] and called == [0, 1, 2, 3]


def test_a_stop_waits_for_no_call() -> None:
    release, stop, called = threading.Event(), threading.Event(), list[int]()

    def hang(item: int) -> None:
        called.append(item)
        release.wait(10)

    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(StopRequested), stop_on(stop):
        list(map_as_completed(hang, range(9), num_threads=2))
    assert time.monotonic() - began < 1
    release.set()
    time.sleep(0.05)
    assert called == [0, 1]
