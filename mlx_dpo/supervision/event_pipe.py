"""What a training process tells its supervisor: a `Listener`'s calls, and how it ended, as lines of JSON on a pipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_dpo.errors import Interrupted, UserError
from mlx_dpo.training.listener import Listener, Metrics, RunPlan, TrainResult

DONE, INTERRUPTED, REFUSED = "done", "interrupted", "refused"
OUT_OF_MEMORY, RANK_LOST = "out of memory", "rank lost"
ONLY_MAIN_HAS_WORK = "nothing left"  # to do on another rank than 0
ENDINGS = (DONE, INTERRUPTED, REFUSED, OUT_OF_MEMORY, RANK_LOST)


class EventSender(Listener):
    """Writes each call to a pipe. Where nobody reads it any more, `lost` is called once: the supervisor is gone."""

    def __init__(self, pipe: int, lost: Callable[[], None]) -> None:
        self.pipe, self.lost = pipe, lost

    def send(self, event: str, *arguments: Any) -> None:
        """One line."""
        line = json.dumps([event, *arguments], default=str).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self.pipe, line) :]
        except OSError:
            self.lost()

    def on_preparing(self, text: str) -> None:
        self.send("preparing", text)

    def on_run_start(self, plan: RunPlan) -> None:
        self.send("begin", asdict(plan))

    def on_step(self, step: int, metrics: Metrics) -> None:
        self.send("step", step, metrics)

    def on_metrics(self, metrics: Metrics) -> None:
        self.send("report", metrics)

    def on_evaluation_progress(self, done: int, pairs: int) -> None:
        self.send("evaluating", done, pairs)

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        self.send("evaluation", metrics)

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        self.send("evaluated", reference_seconds, sampling_seconds)

    def on_checkpoint_saved(self, step: int, folder: Path) -> None:
        self.send("saved", step, folder)

    def on_note(self, text: str) -> None:
        self.send("note", text)

    def done(self, result: TrainResult) -> None:
        """The run came to its end."""
        self.send(DONE, result.to_mapping())

    def interrupted(self, interruption: Interrupted) -> None:
        """It was asked to stop, and is saved."""
        self.send(INTERRUPTED, interruption.step, interruption.checkpoint)

    def refused(self, error: UserError) -> None:
        """Something of the user's is wrong."""
        self.send(REFUSED, UserError.to_mapping(error))


def dispatch_event(event: str, arguments: list[Any], listener: Listener) -> None:
    """Make the call that a line stands for."""
    if event == "begin":
        listener.on_run_start(RunPlan(**_with_path(arguments[0])))
    elif event == "saved":
        listener.on_checkpoint_saved(arguments[0], Path(arguments[1]))
    else:
        getattr(listener, event)(*arguments)


def parse_result(told: Mapping[str, Any]) -> TrainResult:
    """What `Sender.done` sent."""
    return TrainResult(**_with_path(told))


def _with_path(told: Mapping[str, Any]) -> dict[str, Any]:
    return {**told, "run": Path(told["run"])}
