"""The training process of a supervised run: `python -m mlx_dpo.supervision.training_process PIPE JOB`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from importlib import import_module
from types import FrameType
from typing import Any

from mlx_dpo.distributed.rank_environment import is_main_process
from mlx_dpo.supervision.event_pipe import (
    EventSender,
    OnlyMainHasWork,
    ProcessFailed,
    ProcessFinished,
    ProcessInterrupted,
    ProcessLostRank,
    ProcessOutOfMemory,
)
from mlx_dpo.training.events import Event, RunStart, SnapshotTaken
from mlx_dpo.training.listener import Listener, Listeners
from mlx_dpo.utils.signals import STOP_SIGNALS, unblock_stop_signals


class StopOnSignal(Listener):
    """Once training has begun, the first signal stops it, saved; any other ends the process at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.has_begun = False

    def handle(self, event: Event) -> None:
        """Notice that training begins."""
        self.has_begun = self.has_begun or isinstance(event, RunStart)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.stop.is_set() or not self.has_begun:
            os._exit(128 + number)
        self.stop.set()


class SecondaryRankSender(EventSender):
    """On a rank other than 0, sends only that training has begun, and that nothing is left to do on this rank."""

    def handle(self, event: Event) -> None:
        """Send what the supervisor must know."""
        if isinstance(event, RunStart):
            self.steps = event.plan.steps
            self.send(event)
        elif isinstance(event, SnapshotTaken) and event.snapshot.step == self.steps:
            self.send(OnlyMainHasWork())


def main(pipe_fd: int, job: dict[str, Any]) -> int:
    """Trains, and sends events and the outcome to the supervisor.

    Args:
        pipe_fd: file descriptor of the pipe to the supervisor.
        job: what `training_job` returns.

    Returns:
        The exit code.
    """
    on_signal = StopOnSignal()
    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    unblock_stop_signals()
    from mlx_dpo.config import TrainConfig
    from mlx_dpo.errors import Interrupted, RankLost, UserError
    from mlx_dpo.forward.oom_fallback import OomFallback, is_out_of_memory
    from mlx_dpo.training.run import train

    sender = (EventSender if is_main_process() else SecondaryRankSender)(pipe_fd, on_signal.stop.set)
    listeners: list[Listener] = [on_signal, sender]
    if job["recorder"] and is_main_process():
        module, _, function = job["recorder"].partition(":")
        listeners.insert(0, getattr(import_module(module), function)(sender, **job["recorder_options"]))
    try:
        result = train(
            TrainConfig.from_mapping(job["config"]),
            listener=Listeners(*listeners),
            resume=job["resume"],
            resume_anyway=job["resume_anyway"],
            oom_fallback=OomFallback(**job["oom_fallback"]),
            stop=on_signal.stop,
        )
    except Interrupted as interruption:
        sender.send(ProcessInterrupted(interruption.step, interruption.checkpoint))
    except UserError as error:
        sender.send(ProcessFailed(UserError.to_mapping(error)))
    except RankLost as error:
        sender.send(ProcessLostRank(str(error)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sender.send(ProcessOutOfMemory(str(error)))
    else:
        sender.send(ProcessFinished(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
