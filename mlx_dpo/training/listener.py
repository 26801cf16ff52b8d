"""Listeners of a training run: the terminal, metrics.jsonl, trackers, a notebook."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dpo.training.events import Event, Metrics, PreparationProgress, Preparing, RunPlan
from mlx_dpo.utils.progress import Progress

if TYPE_CHECKING:
    from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot


class Listener:
    """Receives the events of a run. Override the hooks of interest; every hook does nothing by default."""

    def handle(self, event: Event) -> None:
        """Call the event's hook. Override it to receive all events, to forward them for example.

        Args:
            event: what happened.
        """
        getattr(self, event.hook)(*(getattr(event, field.name) for field in fields(event)))

    def on_preparing(self, text: str) -> None:
        """A step of the preparation begins.

        Args:
            text: what is being done, such as "Loading the model".
        """

    def on_preparation_progress(self, done: float, total: float) -> None:
        """Some of the step of the preparation is done, where that is known.

        Args:
            done: how much.
            total: how much there is.
        """

    def on_run_start(self, plan: RunPlan) -> None:
        """The first optimizer step is about to be taken.

        Args:
            plan: what the run will do.
        """

    def on_step(self, step: int, metrics: Metrics) -> None:
        """An optimizer step is done.

        Args:
            step: number of steps done.
            metrics: means over the step's own batch; `peak_memory_gb` and `reference_seconds` are totals so far.
        """

    def on_rollouts(self, step: int, rollouts: list[dict[str, Any]]) -> None:
        """An on-policy step is done. Supervised runs call this in the training process only.

        Args:
            step: number of steps done.
            rollouts: what was sampled and judged for it, as lines of rollouts.jsonl.
        """

    def on_metrics(self, metrics: Metrics) -> None:
        """`steps_per_report` steps are done.

        Args:
            metrics: means since the last report, with "step" and "epoch": one line of metrics.jsonl.
        """

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """Some of the held-out examples are measured.

        Args:
            done: examples measured so far.
            total: examples to measure.
        """

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        """An evaluation is done.

        Args:
            metrics: held-out means, their names prefixed by "eval_", with "step": one line of metrics.jsonl.
        """

    def on_evaluation_snapshot(self, snapshot: EvalSnapshot) -> None:
        """An evaluation can be looked into. Supervised runs call this in the training process only.

        Args:
            snapshot: the measurements, example by example, and the policy in memory.
        """

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        """All listeners have processed the evaluation's snapshot.

        Args:
            reference_seconds: time spent so far on the reference log-probs of held-out examples.
            sampling_seconds: time that listeners spent so far on generating completions.
        """

    def on_checkpoint_saved(self, step: int, folder: Path) -> None:
        """A checkpoint is on disk.

        Args:
            step: number of steps done.
            folder: the checkpoint's folder.
        """

    def on_note(self, text: str) -> None:
        """There is something that the user should know.

        Args:
            text: one or more sentences.
        """

    def on_run_end(self) -> None:
        """The run is over, whether it finished, failed or never began."""


class Listeners(Listener):
    """Several listeners as one, which receive every event in the order given."""

    def __init__(self, *listeners: Listener) -> None:
        """Args: listeners: those that receive the events."""
        self.listeners = listeners

    def handle(self, event: Event) -> None:
        """Pass the event on to all listeners."""
        for listener in self.listeners:
            listener.handle(event)


class ListenerProgress(Progress):
    """Reports the preparation of a run to a listener, as events."""

    def __init__(self, listener: Listener) -> None:
        """Args: listener: receives the events."""
        self.listener = listener

    def begin(self, phase: str, unit: str = "") -> None:
        """See `Progress`."""
        self.listener.handle(Preparing(phase))

    def update(self, done: float, total: float) -> None:
        """See `Progress`."""
        self.listener.handle(PreparationProgress(done, total))
