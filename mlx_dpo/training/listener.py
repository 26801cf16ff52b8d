"""What a run tells whoever watches it: the terminal, metrics.jsonl, a notebook."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot

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
    num_examples: dict[str, int]
    example_kind: str
    steps_per_epoch: int
    steps_per_eval: int
    memory_limit: int
    trainable_parameters: int
    total_parameters: int
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

    def on_preparing(self, text: str) -> None:
        """What is being done before training starts."""

    def on_run_start(self, plan: RunPlan) -> None:
        """Training is about to start."""

    def on_step(self, step: int, metrics: Metrics) -> None:
        """An optimizer step is done; `metrics` are of its own pairs, and the seconds the reference took so far."""

    def on_metrics(self, metrics: Metrics) -> None:
        """Means since the last report: one line of metrics.jsonl."""

    def on_evaluation_progress(self, done: int, pairs: int) -> None:
        """Held-out pairs are being measured."""

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        """Held-out metrics, their names behind eval_: one line of metrics.jsonl."""

    def on_evaluation_snapshot(self, snapshot: EvalSnapshot) -> None:
        """What that evaluation was made of, with the policy in memory: example by example, to look into or ask."""

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        """What was made of an evaluation is written down; seconds its reference, and samples, took so far."""

    def on_checkpoint_saved(self, step: int, folder: Path) -> None:
        """A checkpoint is on disk."""

    def on_note(self, text: str) -> None:
        """Something a person should know."""

    def on_run_end(self) -> None:
        """The run is over, however it ended, begun or not."""


class Listeners(Listener):
    """Several listeners as one."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def on_preparing(self, text: str) -> None:
        for one in self.listeners:
            one.on_preparing(text)

    def on_run_start(self, plan: RunPlan) -> None:
        for one in self.listeners:
            one.on_run_start(plan)

    def on_step(self, step: int, metrics: Metrics) -> None:
        for one in self.listeners:
            one.on_step(step, metrics)

    def on_metrics(self, metrics: Metrics) -> None:
        for one in self.listeners:
            one.on_metrics(metrics)

    def on_evaluation_progress(self, done: int, pairs: int) -> None:
        for one in self.listeners:
            one.on_evaluation_progress(done, pairs)

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        for one in self.listeners:
            one.on_evaluation_metrics(metrics)

    def on_evaluation_snapshot(self, snapshot: EvalSnapshot) -> None:
        for one in self.listeners:
            one.on_evaluation_snapshot(snapshot)

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        for one in self.listeners:
            one.on_evaluation_recorded(reference_seconds, sampling_seconds)

    def on_checkpoint_saved(self, step: int, folder: Path) -> None:
        for one in self.listeners:
            one.on_checkpoint_saved(step, folder)

    def on_note(self, text: str) -> None:
        for one in self.listeners:
            one.on_note(text)

    def on_run_end(self) -> None:
        for one in self.listeners:
            one.on_run_end()
