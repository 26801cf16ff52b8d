"""What a checkpoint holds: all that makes what follows the same, bit for bit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
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

MOVING_REFERENCE_FILE, PROGRESS_FILE = "reference.safetensors", "progress.json"


@dataclass
class TrainingProgress:
    """Where a run stands: what changes from step to step besides tensors.

    Attributes:
        step: optimizer steps done; with the seed it gives the position in the data, and what dropout will drop.
        pending: pair metrics of the steps since the last report, one row a pair.
        grad_norms: their gradient norms.
        before: held-out metrics before the first step.
        running: what the loss keeps of the batches so far, by objective.
        skipped, in_a_row: steps without an update, since their numbers were not finite; of them, those just now.
        best_loss, stale: the lowest held-out loss so far, and evaluations since.
        finished: nothing is left to do.
        made_of: what the run's numbers follow from beside its knobs, see `identity`.
    """

    step: int = 0
    pending: list[list[float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    running: dict[str, tuple[float, ...]] = field(default_factory=dict)
    skipped: int = 0
    in_a_row: int = 0
    best_loss: float | None = None
    stale: int = 0
    finished: bool = False
    made_of: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainingState:
    """What a checkpoint holds beside the adapter: all that makes what follows the same bit for bit.

    Attributes:
        optimizer: its state tree.
        references: reference log-probs of the pairs known so far, by pair set; tables of `ReferenceLogps`.
        moving: the reference's tensors, where it moves; empty where it does not.
    """

    progress: TrainingProgress = field(default_factory=TrainingProgress)
    optimizer: dict[str, Any] = field(default_factory=dict)
    reference_tables: dict[str, np.ndarray] = field(default_factory=dict)
    moving_reference: Tensors = field(default_factory=dict)


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Optimizer, random state, reference log-probs and progress, beside a checkpoint's adapter."""
    mx.save_safetensors(str(folder / "optimizer.safetensors"), dict(tree_flatten(state.optimizer)))
    if state.moving_reference:
        mx.save_safetensors(str(folder / MOVING_REFERENCE_FILE), state.moving_reference)
    save_file(state.reference_tables, folder / "references.safetensors")  # float64, which mlx's GPUs don't have
    (folder / PROGRESS_FILE).write_text(json.dumps(asdict(state.progress)) + "\n", encoding="utf-8")


def read_progress(folder: Path) -> TrainingProgress:
    """Where a checkpoint stands. Raises `UserError` where it is damaged."""
    file = folder / PROGRESS_FILE
    try:
        progress = TrainingProgress(**json.loads(file.read_text(encoding="utf-8")))
        if not isinstance(progress.step, int):
            raise ValueError("its step is no number")
        return progress
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None


def read_training_state(folder: Path) -> TrainingState:
    """What `write_exact_state` wrote. Raises `UserError` where it is damaged."""
    progress = read_progress(folder)
    optimizer = tree_unflatten(list(read_safetensors(folder / "optimizer.safetensors").items()))
    references = _read_references(folder / "references.safetensors")
    moving = read_safetensors(folder / MOVING_REFERENCE_FILE) if (folder / MOVING_REFERENCE_FILE).exists() else {}
    return TrainingState(progress, optimizer, references, moving)


def _read_references(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None
