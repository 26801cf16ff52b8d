"""Start a run, or resume it from a checkpoint if nothing that affects its results has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_dpo.adapters.adapter_folder import set_tensors
from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.adapters.reward_head import read_trained_tensors
from mlx_dpo.config_files import CONFIG_FILE, dump_yaml, read_yaml
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.evaluation.example_sets import TRAIN
from mlx_dpo.lineage.lineage_file import LINEAGE_FILE, lineage_json
from mlx_dpo.training.checkpoint import TrainingState, read_training_state
from mlx_dpo.training.components import TrainComponents
from mlx_dpo.training.events import Note
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.provenance import DATA_KEYS, changed_settings, compute_provenance, provenance_changes
from mlx_dpo.training.run_folder import RunFolder, SaveError
from mlx_dpo.training.trainer import Trainer

SKIPPED_ROWS_FILE = "skipped.jsonl"  # in the run's folder: rows that were skipped


@contextmanager
def starting_checkpoint(folder: RunFolder, communicator: Communicator, resume: bool) -> Iterator[Path | None]:
    """Yield the checkpoint to resume from, or None for a new run; on ranks other than 0, a copy of rank 0's.

    Args:
        folder: the run's folder; it is locked.
        communicator: ranks that train together.
        resume: whether there must be a checkpoint.

    Raises:
        UserError: there is no checkpoint to resume from, or the folder holds a finished run.
    """
    checkpoint = None
    if communicator.is_main:
        folder.lock()
        checkpoint = folder.require_latest_checkpoint() if resume else folder.unfinished_checkpoint()
        if checkpoint is None:
            folder.require_new()
    if communicator.size == 1:
        yield checkpoint
        return
    names = sorted(file.name for file in checkpoint.iterdir()) if checkpoint else []
    names = json.loads(communicator.broadcast(json.dumps(names).encode()))
    with TemporaryDirectory() as copy:
        for name in names:
            content = communicator.broadcast((checkpoint / name).read_bytes() if checkpoint else b"")
            if not communicator.is_main:
                (Path(copy) / name).write_bytes(content)
        yield checkpoint or (Path(copy) if names else None)


def start_trainer(
    trainer: Trainer, components: TrainComponents, checkpoint: Path | None, *, allow_changes: bool = False
) -> None:
    """Create the run folder and restore the trainer from a checkpoint, if there is one.

    Args:
        trainer: a trainer at step 0.
        components: the components that it was made from.
        checkpoint: the checkpoint's folder; None for a new run.
        allow_changes: whether to resume even if config, model or data have changed.

    Raises:
        UserError: something has changed, or differs between ranks; nothing is left to do; or the folder can't be
            written.
    """
    folder, listener, communicator = trainer.saver.folder, trainer.listener, trainer.communicator
    digests = {name: examples.examples.source.digest for name, examples in components.example_sets.items()}
    rollouts_digest = trainer.source.digest if components.on_policy else None
    if rollouts_digest is None:
        digests[TRAIN] = trainer.source.digest
    provenance = compute_provenance(components.policy.fingerprint, digests, rollouts_digest)
    _require_equal_ranks(communicator, provenance)
    state = read_training_state(checkpoint) if checkpoint else None
    if checkpoint and state and not allow_changes:
        _require_unchanged(checkpoint, state, components, provenance)
    if communicator.is_main:
        folder.create()
    trainer.progress.provenance = provenance
    if checkpoint and state:
        for name, key in DATA_KEYS.items():
            if state.progress.provenance.get(key) != provenance.get(key):
                state.scorer.arrays.pop(name, None)  # reference log-probs of other rows
        set_tensors(trainer.model, read_trained_tensors(checkpoint), Where(str(checkpoint)))
        state.progress.drop_other_metrics(len(trainer.loss.metric_names))
        trainer.restore(state, provenance)
        listener.handle(Note(f"resuming the run in {folder.path}, after step {state.progress.step:,}."))
    if communicator.is_main:
        tensors = trainable_tensors(trainer.model)
        trainer.saver.check_room(trainer.state(), tensors, trainer.steps)
        if checkpoint:
            trainer.saver.update_adapter(checkpoint, tensors)
        _write_descriptions(folder, components, listener)


def _require_equal_ranks(communicator: Communicator, provenance: dict[str, str]) -> None:
    """Raise `UserError` if another rank uses a different model, data or versions than rank 0."""
    all_provenances = communicator.all_gather_json(provenance)
    for rank, other in enumerate(all_provenances):
        if changes := provenance_changes(all_provenances[0], other):
            hint = "Every machine needs the same model, rows and versions of mlx, mlx-lm and mlx-dpo."
            raise UserError(f"rank {rank} differs from rank 0: " + "; ".join(changes), hint=hint)


def _require_unchanged(
    checkpoint: Path, state: TrainingState, components: TrainComponents, provenance: dict[str, str]
) -> None:
    """Raise `UserError` if the checkpoint was written with other settings, another model or other rows."""
    settings = changed_settings(read_yaml(checkpoint / CONFIG_FILE), components.config)
    if changes := [*settings, *provenance_changes(state.progress.provenance, provenance)]:
        raise UserError(
            "config, model or data changed since the checkpoint: " + "; ".join(changes),
            where=Where(str(checkpoint)),
            hint="Undo that, choose another --adapter-path, or resume all the same with --resume-anyway.",
        )


def _write_descriptions(folder: RunFolder, components: TrainComponents, listener: Listener) -> None:
    """Write the config, the lineage, and the rows that were skipped."""
    rows = components.skipped_rows
    try:
        folder.write_text(CONFIG_FILE, dump_yaml(components.config))
        folder.write_text(LINEAGE_FILE, lineage_json(components.lineage))
        if rows:
            folder.write_text(SKIPPED_ROWS_FILE, "".join(json.dumps(_row_json(row)) + "\n" for row in rows))
            listener.handle(Note(f"{len(rows):,} rows were left out; {folder.path / SKIPPED_ROWS_FILE} lists them."))
    except SaveError as error:
        raise UserError(f"the output folder can't be written: {error}", where=Where(str(folder.path))) from None


def _row_json(error: RowError) -> dict[str, Any]:
    where = error.where or Where("")
    return {"file": where.file, "line": where.line, "field": error.field, "kind": error.kind, "message": error.message}
