"""A limit on the time that a piece of Python may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeLimitExceeded(Exception):
    """A block of code was ended because it took too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitExceeded` in a block of Python code that runs longer than `seconds`.

    It uses the process's alarm timer, so it works in the main thread only. Elsewhere, on systems without that timer
    and where the timer is in use, there is no limit.
    """
    if not _can_set_alarm():
        yield
        return
    previous = signal.signal(signal.SIGALRM, _raise_exceeded)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _can_set_alarm() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )


def _raise_exceeded(number: int, frame: FrameType | None) -> None:
    raise TimeLimitExceeded
