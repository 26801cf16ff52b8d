"""Messages from a training process to its supervisor: the run's events and its outcome, as lines of JSON on a pipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mlx_dpo.training.events import Event, RolloutsUsed, SnapshotTaken, TrainResult
from mlx_dpo.training.listener import Listener


@dataclass(frozen=True)
class ProcessFinished:
    """The run is finished."""

    result: TrainResult


@dataclass(frozen=True)
class ProcessInterrupted:
    """The run was stopped on request, and is saved."""

    step: int
    checkpoint: str


@dataclass(frozen=True)
class ProcessFailed:
    """The run ended with a `UserError`, here the result of its `to_mapping`."""

    error: dict[str, Any]


@dataclass(frozen=True)
class ProcessOutOfMemory:
    """mlx could not allocate memory."""

    reason: str


@dataclass(frozen=True)
class ProcessLostRank:
    """The connection to another rank was lost."""

    reason: str


@dataclass(frozen=True)
class OnlyMainHasWork:
    """This rank's work is done; the main rank no longer needs it."""


ProcessEnd = ProcessFinished | ProcessInterrupted | ProcessFailed | ProcessOutOfMemory | ProcessLostRank
_MESSAGES = {kind.__name__: kind for kind in (*Event.__subclasses__(), *get_args(ProcessEnd), OnlyMainHasWork)}


class EventSender(Listener):
    """Writes events and other messages to a pipe.

    Args:
        pipe_fd: file descriptor of the pipe.
        on_lost: called if the pipe can't be written to because the supervisor has ended.
    """

    def __init__(self, pipe_fd: int, on_lost: Callable[[], None]) -> None:
        self.pipe_fd, self.on_lost = pipe_fd, on_lost

    def handle(self, event: Event) -> None:
        """Send every event but evaluation snapshots, which hold the model, and rollouts, which may be large."""
        if not isinstance(event, (SnapshotTaken, RolloutsUsed)):
            self.send(event)

    def send(self, message: Any) -> None:
        """Send one of the dataclasses of this module, or an event."""
        line = json.dumps([type(message).__name__, asdict(message)], default=str).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self.pipe_fd, line) :]
        except OSError:
            self.on_lost()


def parse_message(line: str) -> Any:
    """Return the dataclass that `EventSender.send` wrote; None for a line that was cut off."""
    try:
        name, values = json.loads(line)
    except ValueError:
        return None
    return _from_json(_MESSAGES[name], values)


def _from_json(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{name: _from_json(types[name], item) for name, item in value.items()})  # type: ignore[operator]
    return Path(value) if kind is Path else value
