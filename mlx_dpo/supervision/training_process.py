"""The training process of a supervised run: `python -m mlx_dpo.supervision.training_process PIPE ORDER`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from mlx_dpo.distributed.rank_environment import is_main_process
from mlx_dpo.supervision.event_pipe import ONLY_MAIN_HAS_WORK, OUT_OF_MEMORY, RANK_LOST, EventSender
from mlx_dpo.training.listener import Listener, RunPlan
from mlx_dpo.utils.signals import STOP_SIGNALS

if TYPE_CHECKING:
    from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot

OUT_OF_MEMORY_WORDS = ("memory", "malloc")  # of mlx, where an allocation fails with an exception


class StopOnSignal:
    """Once training has begun, the first signal asks for an end after the step at hand; else it ends at once."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.begun = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.stop.is_set() or not self.begun:
            os._exit(128 + number)
        self.stop.set()


class ProcessEventSender(EventSender):
    """Knows when training has begun."""

    def __init__(self, pipe: int, signals: StopOnSignal) -> None:
        super().__init__(pipe, lost=signals.stop.set)
        self.signals = signals

    def on_run_start(self, plan: Any) -> None:
        self.signals.begun = True
        super().on_run_start(plan)


class SecondaryRankListener(Listener):
    """On another rank than 0, all there is to tell: that training has begun, and that rank 0 alone has work left."""

    def __init__(self, sender: EventSender) -> None:
        self.sender = sender

    def on_run_start(self, plan: RunPlan) -> None:
        self.plan = plan
        self.sender.on_run_start(plan)

    def on_evaluation_snapshot(self, snapshot: EvalSnapshot) -> None:
        if snapshot.step == self.plan.steps:
            self.sender.send(ONLY_MAIN_HAS_WORK)


def main(pipe_fd: int, job: dict[str, Any]) -> int:
    """Train as `order` says; returns the exit code."""
    signals = StopOnSignal()
    for number in STOP_SIGNALS:
        signal.signal(number, signals)
    from mlx_dpo.config import TrainConfig
    from mlx_dpo.errors import Interrupted, RankLost, UserError
    from mlx_dpo.forward.oom_fallback import OomFallback
    from mlx_dpo.reporting.metrics_log import MetricsLog
    from mlx_dpo.reporting.run_recorder import RunRecorder
    from mlx_dpo.training.listener import Listeners
    from mlx_dpo.training.run import train

    sender = ProcessEventSender(pipe_fd, signals)
    recorder = RunRecorder(
        sender.on_evaluation_recorded, sender.on_note, num_samples=job["samples"], command=job["command"]
    )
    listener = (
        Listeners(MetricsLog(sender.on_note), recorder, sender) if is_main_process() else SecondaryRankListener(sender)
    )
    try:
        result = train(
            TrainConfig.from_mapping(job["config"]),
            listener=listener,
            resume=job["resume"],
            resume_anyway=job["resume_anyway"],
            oom_fallback=OomFallback(**job["caution"]),
            stop=signals.stop,
        )
    except Interrupted as interruption:
        sender.interrupted(interruption)
    except UserError as error:
        sender.refused(error)
    except RankLost as error:
        sender.send(RANK_LOST, str(error))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(word in str(error).lower() for word in OUT_OF_MEMORY_WORDS):
            raise
        sender.send(OUT_OF_MEMORY, str(error))
    else:
        sender.done(result)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
