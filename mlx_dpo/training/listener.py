"""What a run tells whoever watches it: the terminal, metrics.jsonl, a notebook."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_dpo.evaluation.eval_snapshot import HeldOut

Metrics = dict[str, float]


@dataclass(frozen=True)
class RunPlan:
    """What is about to happen.

    Attributes:
        steps: optimizer steps in all; `first_step` of them are done where a run is resumed.
        pairs: how many there are, by "train" and "held_out".
        what: what they are called: pairs, or completions.
        steps_per_epoch: steps that see every pair once.
        steps_per_eval: steps between evaluations; 0: only first and last.
        memory_limit: bytes that may be used.
        trained_parameters, all_parameters: counts.
        ranks: processes that train together.
        gradient_bytes: what each of them sends a step for gradients to be summed.
    """

    run: Path
    steps: int
    first_step: int
    pairs: dict[str, int]
    what: str
    steps_per_epoch: int
    steps_per_eval: int
    memory_limit: int
    trained_parameters: int
    all_parameters: int
    ranks: int = 1
    gradient_bytes: int = 0


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: the folder, held-out metrics before and after (empty without held-out pairs), and notes."""

    run: Path
    steps: int
    seconds: float
    before: Metrics
    after: Metrics
    notes: list[str] = field(default_factory=list)

    def to_mapping(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "run": str(self.run)}


class Listener:
    """Hears of a run as it goes; each method may be overridden, none has to be."""

    def preparing(self, text: str) -> None:
        """What is being done before training starts."""

    def begin(self, plan: RunPlan) -> None:
        """Training is about to start."""

    def step(self, step: int, metrics: Metrics) -> None:
        """An optimizer step is done; `metrics` are of its own pairs, and the seconds the reference took so far."""

    def report(self, metrics: Metrics) -> None:
        """Means since the last report: one line of metrics.jsonl."""

    def evaluating(self, done: int, pairs: int) -> None:
        """Held-out pairs are being measured."""

    def evaluation(self, metrics: Metrics) -> None:
        """Held-out metrics, their names behind eval_: one line of metrics.jsonl."""

    def held_out(self, seen: HeldOut) -> None:
        """What that evaluation was made of, with the policy in memory: example by example, to look into or ask."""

    def evaluated(self, reference_seconds: float, sampling_seconds: float) -> None:
        """What was made of an evaluation is written down; seconds its reference, and samples, took so far."""

    def saved(self, step: int, folder: Path) -> None:
        """A checkpoint is on disk."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def end(self) -> None:
        """The run is over, however it ended, begun or not."""


class Listeners(Listener):
    """Several listeners as one."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def preparing(self, text: str) -> None:
        for one in self.listeners:
            one.preparing(text)

    def begin(self, plan: RunPlan) -> None:
        for one in self.listeners:
            one.begin(plan)

    def step(self, step: int, metrics: Metrics) -> None:
        for one in self.listeners:
            one.step(step, metrics)

    def report(self, metrics: Metrics) -> None:
        for one in self.listeners:
            one.report(metrics)

    def evaluating(self, done: int, pairs: int) -> None:
        for one in self.listeners:
            one.evaluating(done, pairs)

    def evaluation(self, metrics: Metrics) -> None:
        for one in self.listeners:
            one.evaluation(metrics)

    def held_out(self, seen: HeldOut) -> None:
        for one in self.listeners:
            one.held_out(seen)

    def evaluated(self, reference_seconds: float, sampling_seconds: float) -> None:
        for one in self.listeners:
            one.evaluated(reference_seconds, sampling_seconds)

    def saved(self, step: int, folder: Path) -> None:
        for one in self.listeners:
            one.saved(step, folder)

    def note(self, text: str) -> None:
        for one in self.listeners:
            one.note(text)

    def end(self) -> None:
        for one in self.listeners:
            one.end()
