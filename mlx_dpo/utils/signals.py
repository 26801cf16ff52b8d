"""Handlers for the signals that request a stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESEND_SECONDS = 0.05


def exit_on_stop_signals() -> None:
    """Let Ctrl-C and SIGTERM end this process by `SystemExit`, an exception, so that partial files are removed.

    Python ignores an exception that is raised inside a destructor or a weak reference's callback, and the signal would
    be lost: it is then sent again.
    """
    numbers: dict[object, int] = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM)}  # by exit code
    for number in numbers.values():
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    report = sys.unraisablehook

    def resend_signal(ignored: sys.UnraisableHookArgs) -> None:
        number = numbers.get(ignored.exc_value.code) if isinstance(ignored.exc_value, SystemExit) else None
        if number is not None:
            # By a thread: a handler that runs in here would raise inside the same callback.
            timer = threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
        else:
            report(ignored)

    sys.unraisablehook = resend_signal


@contextmanager
def handle_stop_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Install a handler for the stop signals inside a `with` block; works in the main thread only."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Keep the stop signals waiting inside a `with` block; processes started there keep them so, until they unblock."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_stop_signals() -> None:
    """Let the stop signals through, those that have waited too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
