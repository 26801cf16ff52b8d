"""The files of a run: adapters at its top, and checkpoints that hold all that going on exactly needs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlx_dpo.errors import UserError, Where
from mlx_dpo.model.loading import AdapterSpec, Tensors, read_tensors

ADAPTERS, ADAPTER_CONFIG = "adapters.safetensors", "adapter_config.json"
MOVING = "reference.safetensors"


@dataclass
class Progress:
    """Where a run stands: what changes from step to step besides tensors.

    Attributes:
        step: optimizer steps done; with the seed it gives the position in the data.
        pending: pair metrics of the steps since the last report, one row a pair.
        grad_norms: their gradient norms.
        before: held-out metrics before the first step.
        running: what the loss keeps of the batches so far, by objective.
    """

    step: int = 0
    pending: list[list[float]] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    running: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass
class ExactState:
    """What a checkpoint holds beside the adapter: all that makes what follows the same bit for bit.

    Attributes:
        optimizer: its state tree.
        random: the seed that puts mx.random where it was.
        references: reference log-probs of the pairs known so far, by pair set; tables of `ReferenceLogps`.
        moving: the reference's tensors, where it moves; empty where it does not.
    """

    progress: Progress = field(default_factory=Progress)
    optimizer: dict[str, Any] = field(default_factory=dict)
    random: int = 0
    references: dict[str, np.ndarray] = field(default_factory=dict)
    moving: Tensors = field(default_factory=dict)


class RunFolder:
    """A run's folder: a valid mlx-lm adapter folder with more beside it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def require_new(self) -> None:
        """Raises `UserError` where the folder holds a run already."""
        if (self.path / ADAPTERS).exists() or self.latest():
            hint = "Continue it with --resume, or choose another --adapter-path."
            raise UserError("this folder holds an earlier run", where=Where(str(self.path)), hint=hint)

    def make(self) -> None:
        """Make the folder. Raises `UserError` where it can't be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
            where = Where(str(self.path))
            raise UserError(f"the output folder can't be written: {reason}", where=where) from None

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path / name)

    def save_adapter(self, tensors: Tensors, spec: AdapterSpec, model: str) -> None:
        """The adapter as mlx-lm reads it."""
        partial = self.path / f".partial.{ADAPTERS}"
        mx.save_safetensors(str(partial), tensors, metadata={"format": "mlx"})
        partial.replace(self.path / ADAPTERS)
        self.write_text(ADAPTER_CONFIG, adapter_config(spec, model))

    def latest(self) -> Path | None:
        """The folder of the last whole checkpoint."""
        found = [p for p in self.path.glob("checkpoints/[0-9]*") if p.is_dir()]
        return max(found, key=lambda p: int(p.name), default=None)

    def require_latest(self) -> Path:
        """The folder of the last whole checkpoint. Raises `UserError` where there is none."""
        latest = self.latest()
        if latest is None:
            raise UserError("there is no checkpoint here to go on from", where=Where(str(self.path)))
        return latest

    def save_checkpoint(self, exact: ExactState, tensors: Tensors, spec: AdapterSpec, model: str) -> Path:
        """Write a checkpoint aside and move it into place; a reader sees all of it or nothing."""
        final = self.path / "checkpoints" / f"{exact.progress.step:07d}"
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        RunFolder(partial).save_adapter(tensors, spec, model)
        write_exact_state(partial, exact)
        for file in partial.iterdir():
            with file.open("rb") as f:
                os.fsync(f.fileno())
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        return final


def adapter_config(spec: AdapterSpec, model: str) -> str:
    """adapter_config.json: what mlx-lm reads, and the model the adapter belongs to."""
    return json.dumps({"model": model, **spec.to_json()}, indent=4) + "\n"


def write_exact_state(folder: Path, exact: ExactState) -> None:
    """Optimizer, random state, reference log-probs and progress, beside a checkpoint's adapter."""
    mx.save_safetensors(str(folder / "optimizer.safetensors"), dict(tree_flatten(exact.optimizer)))
    if exact.moving:
        mx.save_safetensors(str(folder / MOVING), exact.moving)
    save_file(exact.references, folder / "references.safetensors")  # float64, which mlx's GPUs don't have
    progress = {**asdict(exact.progress), "random": exact.random}
    (folder / "progress.json").write_text(json.dumps(progress) + "\n")


def read_exact_state(folder: Path) -> ExactState:
    """What `write_exact_state` wrote. Raises `UserError` where it is damaged."""
    file = folder / "progress.json"
    try:
        progress = json.loads(file.read_text())
        random = int(progress.pop("random"))
        progress = Progress(**progress)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None
    optimizer = tree_unflatten(list(read_tensors(folder / "optimizer.safetensors").items()))
    references = _read_references(folder / "references.safetensors")
    moving = read_tensors(folder / MOVING) if (folder / MOVING).exists() else {}
    return ExactState(progress, optimizer, random, references, moving)


def _read_references(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the file is damaged: {error}", where=Where(str(file))) from None
