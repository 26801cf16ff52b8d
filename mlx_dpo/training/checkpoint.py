"""The files of a checkpoint, from which a resumed run continues bit for bit as if it had not stopped.

A checkpoint is a flat folder: `starting_checkpoint` and the push of checkpoints copy its files and no subfolders.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlx_dpo.adapters.adapter_folder import read_safetensors
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.metrics import mean_metrics

PROGRESS_FILE, OPTIMIZER_FILE = "progress.json", "optimizer.safetensors"
# Log-probs of the reference, and its tensors if it moves. Existing checkpoints have these names, so they stay.
REFERENCE_LOGPS_FILE, MOVING_REFERENCE_FILE = "references.safetensors", "reference.safetensors"
SOURCE_FILE = "source.safetensors"
SOURCE_KEY, SCORER_KEY = "source", "scorer"  # in progress.json, if a source or a scorer has values to keep


@dataclass
class TrainingProgress:
    """The progress of a run: step, pending metrics and counters, without tensors.

    Attributes:
        step: optimizer steps done; together with the seed it determines the position in the data and dropout.
        pending_metrics: metrics of the examples since the last report, one row per example, with a column for each of
            the loss's `metric_names`. A checkpoint written with other metrics can't be resumed between two reports.
        grad_norms: gradient norms of the steps since the last report.
        evaluated_step: the step of the last evaluation; None in checkpoints of earlier versions, which were written
            after theirs.
        metrics_before: held-out metrics before the first step.
        loss_states: running state of stateful losses (bco, beta_dpo), by loss.
        skipped_steps: steps without an update, since their numbers were not finite.
        consecutive_skips: how many of the latest steps were skipped.
        best_loss: the lowest held-out loss so far.
        evaluations_since_best: evaluations since it was reached.
        finished: whether nothing is left to do.
        provenance: versions and digests that determine the results; see `compute_provenance`.
    """

    step: int = 0
    pending_metrics: list[list[float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    evaluated_step: int | None = 0
    metrics_before: dict[str, float] = field(default_factory=dict)
    loss_states: dict[str, tuple[float, ...]] = field(default_factory=dict)
    skipped_steps: int = 0
    consecutive_skips: int = 0
    best_loss: float | None = None
    evaluations_since_best: int = 0
    finished: bool = False
    provenance: dict[str, str] = field(default_factory=dict)

    def evaluation_is_pending(self, steps: int, steps_per_eval: int) -> bool:
        """Whether the evaluation due at this step has not been run yet.

        Args:
            steps: optimizer steps of the whole run.
            steps_per_eval: steps between evaluations; 0 if only the first and the last are made.
        """
        if self.step == steps:  # a run is marked as finished together with its last evaluation
            return not self.finished
        is_due = bool(steps_per_eval and self.step % steps_per_eval == 0)
        return is_due and self.evaluated_step is not None and self.evaluated_step < self.step

    def drop_other_metrics(self, count: int) -> None:
        """Drop pending metrics whose rows do not have `count` columns: a version with other metrics wrote them.

        The next report is then about the steps after the checkpoint only.
        """
        self.pending_metrics = [row for row in self.pending_metrics if len(row) == count]

    def take_pending_metrics(self, names: Sequence[str]) -> dict[str, float]:
        """Return the mean metrics since the last call, with the mean gradient norm; empty if no step was taken.

        Args:
            names: of the metrics.
        """
        if not self.pending_metrics:
            return {}
        means = mean_metrics([np.array(self.pending_metrics)], names)
        means["grad_norm"] = float(np.mean(self.grad_norms))
        self.pending_metrics, self.grad_norms = [], []
        return means

    def has_stopped_improving(self, patience: int) -> bool:
        """Whether `patience` evaluations in a row were not better than the best; never if it is 0."""
        return 0 < patience <= self.evaluations_since_best

    def record_loss(self, loss: float) -> bool:
        """Count evaluations since the best one, and return whether this is the best."""
        if self.best_loss is not None and not loss < self.best_loss:
            self.evaluations_since_best += 1
            return False
        self.best_loss, self.evaluations_since_best = loss, 0
        return True


_JSON_KEYS = {  # attributes by their key in progress.json
    "step": "step",
    "pending": "pending_metrics",
    "grad_norms": "grad_norms",
    "evaluated": "evaluated_step",
    "before": "metrics_before",
    "running": "loss_states",
    "skipped": "skipped_steps",
    "in_a_row": "consecutive_skips",
    "best_loss": "best_loss",
    "stale": "evaluations_since_best",
    "finished": "finished",
    "made_of": "provenance",
}


@dataclass
class ComponentState:
    """The state of a batch source or a scorer in a checkpoint.

    Attributes:
        values: plain values, for JSON.
        arrays: arrays by name.
        tensors: mlx tensors by name; only a scorer has some.
    """

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


@dataclass
class TrainingState:
    """The state of a run in a checkpoint, without the adapter.

    Attributes:
        progress: step, pending metrics and counters.
        optimizer: the optimizer's state tree.
        scorer: the scorer's state: reference log-probs by example set, and the reference's tensors if it moves.
        source: the batch source's state.
    """

    progress: TrainingProgress = field(default_factory=TrainingProgress)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scorer: ComponentState = field(default_factory=ComponentState)
    source: ComponentState = field(default_factory=ComponentState)

    @property
    def num_bytes(self) -> int:
        """Bytes of its arrays on disk; the rest is small."""
        arrays = [array for _, array in tree_flatten(self.optimizer)]
        for component in (self.scorer, self.source):
            arrays += [*component.arrays.values(), *component.tensors.values()]
        return sum(array.nbytes for array in arrays)


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Write a checkpoint's files beside its adapter.

    Args:
        folder: the checkpoint's folder.
        state: what to write.
    """
    mx.save_safetensors(str(folder / OPTIMIZER_FILE), dict(tree_flatten(state.optimizer)))
    if state.scorer.tensors:
        mx.save_safetensors(str(folder / MOVING_REFERENCE_FILE), state.scorer.tensors)
    save_file(state.scorer.arrays, folder / REFERENCE_LOGPS_FILE)  # float64, which mlx's GPUs don't have
    if state.source.arrays:
        save_file(state.source.arrays, folder / SOURCE_FILE)
    write_progress(folder / PROGRESS_FILE, state)


def write_progress(file: Path, state: TrainingState) -> None:
    """Write progress.json, the part of a checkpoint that a later evaluation changes.

    Args:
        file: progress.json, or a file that will replace it.
        state: what to write.
    """
    content = {key: getattr(state.progress, name) for key, name in _JSON_KEYS.items()}
    for key, component in ((SOURCE_KEY, state.source), (SCORER_KEY, state.scorer)):
        if component.values:
            content[key] = component.values
    file.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_progress(folder: Path) -> TrainingProgress:
    """Read the progress of a checkpoint's run.

    Args:
        folder: the checkpoint's folder.

    Raises:
        UserError: the file is damaged.
    """
    return _read_progress_file(folder)[0]


def read_training_state(folder: Path) -> TrainingState:
    """Read what `write_training_state` wrote.

    Args:
        folder: the checkpoint's folder.

    Raises:
        UserError: a file is damaged.
    """
    progress, values = _read_progress_file(folder)
    optimizer = tree_unflatten(list(read_safetensors(folder / OPTIMIZER_FILE).items()))
    moving_reference = folder / MOVING_REFERENCE_FILE
    tensors = read_safetensors(moving_reference) if moving_reference.exists() else {}
    scorer = ComponentState(values.get(SCORER_KEY, {}), _read_arrays(folder / REFERENCE_LOGPS_FILE), tensors)
    source_file = folder / SOURCE_FILE
    source = ComponentState(values.get(SOURCE_KEY, {}), _read_arrays(source_file) if source_file.exists() else {})
    return TrainingState(progress, optimizer, scorer, source)


def _read_progress_file(folder: Path) -> tuple[TrainingProgress, dict[str, Any]]:
    """The progress, and the values of source and scorer."""
    file = folder / PROGRESS_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        values = {key: content.pop(key) for key in (SOURCE_KEY, SCORER_KEY) if key in content}
        content.setdefault("evaluated", None)
        progress = TrainingProgress(**{_JSON_KEYS[key]: value for key, value in content.items()})
        if not isinstance(progress.step, int):
            raise ValueError("its step must be an integer")
        return progress, values
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None
