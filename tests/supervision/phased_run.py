"""`mlx-dpo train` in a process that keeps track of the phase it is in, and ends in the middle of one."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.forked import context, start_command

# What is wrapped, by phase: (module, class or None, function). `write_run_outputs` calls the last three.
WRAPPED: dict[str, tuple[str, str | None, str]] = {
    "step": ("mlx_dpo.training.trainer", "Trainer", "step"),
    "evaluation": ("mlx_dpo.training.components", None, "evaluate_examples"),
    "kl": ("mlx_dpo.evaluation.eval_snapshot", "EvalSnapshot", "kl"),
    "samples": ("mlx_dpo.reporting.run_recorder", "RunRecorder", "_sample"),
    "checkpoint": ("mlx_dpo.training.run_folder", "RunFolder", "save_checkpoint"),
    "adapter": ("mlx_dpo.training.run_folder", "RunFolder", "save_adapter"),
    "progress": ("mlx_dpo.training.run_folder", "RunFolder", "update_progress"),
    "record": ("mlx_dpo.export.card.training_record", "TrainingRecorder", "write"),
    "report": ("mlx_dpo.cli.run_listeners", None, "write_report"),
    "card": ("mlx_dpo.cli.run_listeners", None, "write_card"),
}
PHASES = ("other", *WRAPPED)


@dataclass(frozen=True)
class Moment:
    """When a process ends: `share` of a phase's usual duration after it has begun for the `visit`-th time."""

    phase: str
    visit: int
    share: float


@dataclass
class PhaseTracker:
    """Wraps functions in the process that trains.

    Attributes:
        current: index of the phase, in memory shared with the test.
        is_after_last_step: whether the last optimizer step is done; likewise.
        moment: when to end; None for an undisturbed run, whose durations are sent to the test.
        usual: seconds that a visit of each phase takes.
    """

    current: Any
    is_after_last_step: Any
    moment: Moment | None
    usual: dict[str, float]
    queue: Any
    durations: dict[str, list[float]] = field(default_factory=dict)
    visits: dict[str, int] = field(default_factory=dict)

    def install(self) -> None:
        """Wrap the functions of all phases."""
        for phase, (module, owner, name) in WRAPPED.items():
            target = import_module(module)
            target = getattr(target, owner) if owner else target
            setattr(target, name, self._wrap(phase, getattr(target, name)))

    def send_durations(self) -> None:
        """Send to the test how long phases took."""
        if self.moment is None:
            self.queue.put(self.durations)

    def _wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            outer, self.current.value = self.current.value, PHASES.index(phase)
            self.visits[phase] = self.visits.get(phase, 0) + 1
            if self.moment and (phase, self.visits[phase]) == (self.moment.phase, self.moment.visit):
                # Nobody handles SIGALRM here: it ends the process at once, in the middle of whatever it does.
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, self.moment.share * self.usual[phase]))
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.durations.setdefault(phase, []).append(time.perf_counter() - began)
                self.current.value = outer
                if phase == "step":
                    trainer = arguments[0]
                    self.is_after_last_step.value = int(trainer.progress.step == trainer.steps)

        return wrapper


class PhasedRuns:
    """Starts such processes.

    Attributes:
        usual: seconds that a visit of a phase takes, in the first run.
    """

    def __init__(self) -> None:
        self.current, self.is_after_last_step = context.Value("i", lock=False), context.Value("i", lock=False)
        self.queue = context.SimpleQueue()
        self.usual: dict[str, float] = {}

    def run(self, arguments: list[str], output: Path, moment: Moment | None = None) -> tuple[int, str, bool]:
        """The exit code, the phase in which it ended, and whether that was after the last step."""
        self.current.value = self.is_after_last_step.value = 0
        tracker = PhaseTracker(self.current, self.is_after_last_step, moment, self.usual, self.queue)
        process = start_command(arguments, output, tracker.install, tracker.send_durations)
        process.join(120)
        assert process.exitcode is not None, f"{moment}: it does not end"
        if moment is None:
            durations = self.queue.get()
            self.usual = self.usual or {phase: sum(values) / len(values) for phase, values in durations.items()}
        return process.exitcode, PHASES[self.current.value], bool(self.is_after_last_step.value)
