"""One flag that asks long work to stop: loops over micro-batches, chunks, tokens and files look at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequested(Exception):
    """A stop was requested; unfinished work must be discarded."""


_active: list[threading.Event] = []


@contextmanager
def stop_on(event: threading.Event) -> Iterator[None]:
    """Make `check_stop` raise `StopRequested` inside a `with` block once an event is set."""
    _active.append(event)
    try:
        yield
    finally:
        _active.remove(event)


def check_stop() -> None:
    """Raise `StopRequested` if a stop was requested; cheap enough for inner loops."""
    if any(event.is_set() for event in _active):
        raise StopRequested
