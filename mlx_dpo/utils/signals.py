"""Signals that ask a process to end, and who hears of them for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKED_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled(by: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Within, these signals are handled so; only of use in the main thread."""
    before = {number: signal.signal(number, by) for number in ASKED_TO_STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
