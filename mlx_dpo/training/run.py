"""`train`: from a config to a finished run's folder."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.adapter_folder import put_tensors, read_adapter
from mlx_dpo.adapters.attach import trainable
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.config import TrainConfig, dump_yaml, read_yaml
from mlx_dpo.distributed.communicator import ALONE, Group, ring_bytes
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN, PairSet, PairSets, Rows, open_pair_sets
from mlx_dpo.evaluation.reference_setup import OF_THE_POLICY, connect_reference, score_by_other_model
from mlx_dpo.forward.device import keep_weights_resident, parse_memory, usable_memory
from mlx_dpo.forward.memory_model import Budget
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Sharing
from mlx_dpo.forward.oom_fallback import CAREFREE, Caution
from mlx_dpo.forward.policy import Policy, make_policy
from mlx_dpo.objectives import KNOBS, Loss
from mlx_dpo.training.checkpoint import ExactState, read_exact_state
from mlx_dpo.training.data_notes import length_notes, row_notes
from mlx_dpo.training.listener import Listener, RunPlan, TrainResult
from mlx_dpo.training.provenance import changed_knobs, differences, made_of
from mlx_dpo.training.run_folder import CONFIG, RunFolder, SaveFailed
from mlx_dpo.training.trainer import Trainer

SKIPPED = "skipped.jsonl"  # in the run's folder: rows that were left out


def train(
    config: TrainConfig,
    *,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    valid_rows: Rows | None = None,
    listener: Listener | None = None,
    resume: bool = False,
    resume_anyway: bool = False,
    caution: Caution = CAREFREE,
    stop: threading.Event | None = None,
) -> TrainResult:
    """Train a policy on preference pairs and leave a run's folder at `config.adapter_path`.

    Args:
        config: every knob. `config.model` is loaded unless `model` and `tokenizer` are given.
        model: an mlx-lm model in memory, without adapters; it is adapted and trained in place.
        tokenizer: its tokenizer, as mlx_lm.load gives it.
        rows, valid_rows: preference rows in memory, in any accepted shape, instead of `config.data`.
        listener: hears of the run as it goes; trackers are listeners too (`trackers_of(config.report_to)`).
        resume: go on from the last checkpoint in the folder. So is done, too, where the folder holds an unfinished
            run with these very knobs, model and data.
        resume_anyway: go on even where these are not what they were.
        caution: how much smaller micro-batches are to be than they could.
        stop: set it to end the run after the step at hand, saved.

    Where a launcher has started several processes, each calls this, and together they train one adapter; the listener
    of each hears of the run, and only rank 0 writes.

    Raises:
        UserError: something given is wrong, on any rank; the message says what, where, and what to do.
        Interrupted: `stop` was set, on any rank.
        RankLost: another process of the group has ended without a word.
    """
    listener, folder = listener or Listener(), RunFolder(config.adapter_path)
    given = Given(config, model, tokenizer, rows, valid_rows, listener, caution)
    try:
        group = Group.join(split=not config.tensor_parallel)
        with group.one_fate():
            _refuse_for(group, config)
            prepared = _prepare(given, folder, group, resume or resume_anyway, resume_anyway, stop or threading.Event())
            return _run(prepared)
    finally:
        folder.unlock()
        listener.end()


def _refuse_for(group: Group, config: TrainConfig) -> None:
    """Raises `UserError` where a knob does not go with so many ranks."""
    for field in ("data", "valid_data"):
        if group.size > 1 and getattr(config, field) == "-":
            hint = "Name a file that every machine has."
            raise UserError("one stdin can't be read by several processes", field=field, hint=hint)
    if not config.tensor_parallel:
        return
    if group.size == 1:
        hint = "Start several, by mlx.launch or with --workers."
        raise UserError("one process has no other to share a model with", field="tensor_parallel", hint=hint)
    if config.reference not in OF_THE_POLICY:
        hint = "Use --reference initial, base or none."
        raise UserError("another model is not shared out, and would be whole in memory", field="reference", hint=hint)


@dataclass(frozen=True)
class Given:
    """What `train` was given."""

    config: TrainConfig
    model: nn.Module | None
    tokenizer: Any
    rows: Rows | None
    valid_rows: Rows | None
    listener: Listener
    caution: Caution = CAREFREE


@dataclass(frozen=True)
class SetUp:
    """What a run trains with: the config with the knobs as the model took them, and all that came of it."""

    config: TrainConfig
    policy: Policy
    budget: Budget
    loss: Loss
    sets: PairSets
    bad_rows: list[RowError]
    group: Group

    def trainer(self, folder: RunFolder, listener: Listener, stop: threading.Event | None = None) -> Trainer:
        """A trainer that stands before its first step."""
        stop = stop or threading.Event()
        return Trainer(self.config, self.policy, self.budget, self.loss, self.sets, folder, listener, stop, self.group)


def _prepare(
    given: Given, folder: RunFolder, group: Group, resume: bool, anyway: bool, stop: threading.Event
) -> Trainer:
    """A trainer that stands at its first step, or where a checkpoint was written; see `train`."""
    with _start_of(folder, group, resume) as checkpoint:
        exact = None if checkpoint is None else read_exact_state(checkpoint)
        found = set_up(given, exact.references if exact else {}, group)
        now = made_of(found.policy.fingerprint, found.sets)
        _require_alike(group, now)
        if checkpoint and exact and not anyway:
            _require_same(checkpoint, exact, found.config, now)
        if group.leads:
            folder.make()
        trainer = found.trainer(folder, given.listener, stop)
        trainer.progress.made_of = now
        if checkpoint and exact:
            put_tensors(found.policy.model, read_adapter(checkpoint)[1], Where(str(checkpoint)))
            trainer.restore(exact, made_of=now)
            given.listener.note(f"going on with the run in {folder.path}, after step {exact.progress.step:,}.")
    if group.leads:
        _write_first(folder, found, given.listener)
    return trainer


@contextmanager
def _start_of(folder: RunFolder, group: Group, resume: bool) -> Iterator[Path | None]:
    """The checkpoint to go on from, None where a run begins; of other ranks than 0, a copy of rank 0's.

    Raises `UserError` where there is none to resume, or the folder holds a finished run.
    """
    checkpoint = None
    if group.leads:
        folder.lock()
        checkpoint = folder.require_latest() if resume else folder.unfinished()
        if checkpoint is None:
            folder.require_new()
    if group.size == 1:
        yield checkpoint
        return
    names = sorted(file.name for file in checkpoint.iterdir()) if checkpoint else []
    names = json.loads(group.of_first(json.dumps(names).encode()))
    with TemporaryDirectory() as copy:
        for name in names:
            content = group.of_first((checkpoint / name).read_bytes() if checkpoint else b"")
            if not group.leads:
                (Path(copy) / name).write_bytes(content)
        yield checkpoint or (Path(copy) if names else None)


def _require_alike(group: Group, now: dict[str, str]) -> None:
    """Raises `UserError` where what another rank trains with is not what rank 0 does."""
    every = group.told(now)
    for rank, theirs in enumerate(every):
        if changed := differences(every[0], theirs):
            hint = "Every machine needs the same model, rows and versions of mlx, mlx-lm and mlx-dpo."
            raise UserError(f"rank {rank} differs from rank 0: " + "; ".join(changed), hint=hint)


def _require_same(checkpoint: Path, exact: ExactState, config: TrainConfig, now: dict[str, str]) -> None:
    """Raises `UserError` where the checkpoint is of other knobs, another model or other rows."""
    knobs = changed_knobs(read_yaml(checkpoint / CONFIG), config)
    if changed := [*knobs, *differences(exact.progress.made_of, now)]:
        raise UserError(
            "what this run was made of is not what it was: " + "; ".join(changed),
            where=Where(str(checkpoint)),
            hint="Put it back, choose another --adapter-path, or go on all the same with --resume-anyway.",
        )


def _write_first(folder: RunFolder, found: SetUp, listener: Listener) -> None:
    try:
        folder.write_text(CONFIG, dump_yaml(found.config))
        if found.bad_rows:
            folder.write_text(SKIPPED, "".join(json.dumps(row) + "\n" for row in map(_bad_row, found.bad_rows)))
            listener.note(f"{len(found.bad_rows):,} rows were left out; {folder.path / SKIPPED} lists them.")
    except SaveFailed as error:
        raise UserError(f"the output folder can't be written: {error}", where=Where(str(folder.path))) from None


def _bad_row(error: RowError) -> dict[str, Any]:
    where = error.where or Where("")
    return {"file": where.file, "line": where.line, "field": error.field, "kind": error.kind, "message": error.message}


def set_up(given: Given, references: Mapping[str, np.ndarray], group: Group = ALONE) -> SetUp:
    """Open the pairs, load the model and attach what is trained; see `train`.

    Args:
        references: tables of reference log-probs known already, by pair set.
    """
    config, model, tokenizer, listener = given.config, given.model, given.tokenizer, given.listener
    loss = make_loss(config)
    config = with_loss(config, loss)
    if (model is None) != (tokenizer is None):
        raise UserError("a model in memory comes with its tokenizer: give both", field="model")
    tokenizer = tokenizer or load_tokenizer(config.model)
    bad: list[RowError] | None = [] if config.bad_rows == "skip" else None
    sets = open_pair_sets(config, loss, tokenizer, given.rows, given.valid_rows, listener.preparing, bad, group)
    config = for_examples(config, loss, sets[TRAIN])
    if (config.patience or config.keep_best) and HELD_OUT not in sets:
        field = "patience" if config.patience else "keep_best"
        raise UserError("nothing is held out to measure by", field=field, hint="Give rows with --valid-data.")
    for name, table in references.items():
        sets[name].reference.table = table
    if config.reference not in OF_THE_POLICY:
        score_by_other_model(config, loss, tokenizer, sets, group)
    listener.preparing("Loading the model")
    policy = _policy(config, model, group)
    limit = parse_memory(config.memory_limit) if config.memory_limit else None
    caution = _agreed(given.caution, group)
    recompute = config.grad_checkpoint or caution.grad_checkpoint
    budget = Budget.for_training(policy.network, usable_memory(), limit, recompute, caution.share)
    connect_reference(config, loss, policy, budget, sets, group)
    resolved = config.replace(**_as_attached(policy.spec, config))
    return SetUp(resolved, policy, budget, loss, sets, bad or [], group)


def make_loss(config: TrainConfig) -> Loss:
    """The objective of a config, with its knobs. Raises `UserError`."""
    likelihood = f",sft={config.rpo_alpha}" if config.rpo_alpha else ""
    return Loss.parse(
        config.loss + likelihood,
        {name: getattr(config, name) for name in KNOBS},
        weighting=config.use_weighting,
        tail=1.0 if config.ld_alpha is None else config.ld_alpha,
    )


def with_loss(config: TrainConfig, loss: Loss) -> TrainConfig:
    """The config with the loss's knobs as they were resolved, and no reference where the loss has none.

    Raises `UserError` where such a loss is given a reference.
    """
    if not loss.reference and config.reference not in ("none", TrainConfig().reference):
        hint = "Leave --reference out; `mlx-dpo losses` tells which losses have one."
        raise UserError(f"the loss {config.loss!r} has no reference", field="reference", hint=hint)
    if loss.kl and config.batch_size == 1:
        hint = "It is estimated on the answers to other prompts of the batch: --batch-size 8 or more is good."
        raise UserError(f"the loss {config.loss!r} asks for a batch's KL", field="batch_size", hint=hint)
    if config.reference_sync_steps and config.reference not in ("initial", "base"):
        raise UserError("only --reference initial or base can move", field="reference_sync_steps")
    if config.reference_mixup is not None and not config.reference_sync_steps:
        raise UserError("nothing is mixed without --reference-sync-steps", field="reference_mixup")
    knobs = {name: loss.knobs[name] for name in KNOBS if name in loss.knobs}
    return config.replace(**knobs, **({} if loss.reference else {"reference": "none"}))


def for_examples(config: TrainConfig, loss: Loss, examples: PairSet) -> TrainConfig:
    """The config as it holds for such examples. Raises `UserError` where a knob does not go with them."""
    if not examples.single:
        return config
    for name, given in (("ld_alpha", config.ld_alpha is not None), ("use_weighting", config.use_weighting)):
        if given:
            raise UserError("it is of pairs, and the rows are single completions", field=name)
    return config.replace(reference="none") if loss.imitates else config


def _agreed(caution: Caution, group: Group) -> Caution:
    """Where all ranks run all micro-batches, what the most careful of them asks for."""
    if group.split:
        return caution
    every = [Caution(**told) for told in group.told(asdict(caution))]
    return Caution(min(one.share for one in every), any(one.grad_checkpoint for one in every))


def _policy(config: TrainConfig, model: nn.Module | None, group: Group) -> Policy:
    keep_weights_resident()
    mx.reset_peak_memory()
    mx.random.seed(config.seed)  # the adapters' first values
    spec = AdapterSpec(
        fine_tune_type=config.fine_tune_type,
        num_layers=config.num_layers,
        rank=config.rank,
        scale=config.scale,
        dropout=config.dropout,
        keys=None if config.lora_keys is None else tuple(config.lora_keys),
        fuse_bits=config.fuse_bits,
    )
    sharers = None if group.split else group.engine
    model = load_model(config.model, lazy=sharers is not None).model if model is None else model
    return make_policy(model, spec, config.init_adapter, sharers)


def _as_attached(spec: AdapterSpec, config: TrainConfig) -> dict[str, Any]:
    """The knobs as the model took them; an initial adapter brings its own."""
    known = {k: v for k, v in asdict(spec).items() if k in config.to_mapping()}
    return known if spec.keys is None else {**known, "lora_keys": list(spec.keys)}


def _run(trainer: Trainer) -> TrainResult:
    began, listener = time.perf_counter(), trainer.listener
    listener.begin(_plan(trainer))
    if trainer.policy.network.sharing is not Sharing.ANY:
        family = type(trainer.model).__module__.rpartition(".")[2]
        listener.note(f"what goes through a model of this type ({family}): {trainer.policy.network.sharing.value}.")
    for note in row_notes(trainer.train_set, trainer.loss, trainer.config.loss):
        listener.note(note)
    said = length_notes(trainer.sets)  # of what is known before training
    for note in said:
        listener.note(note)
    try:
        after = trainer.run()
    finally:
        notes = length_notes(trainer.sets)
        for note in notes:
            if note not in said:
                listener.note(note)
    return TrainResult(
        run=trainer.folder.path,
        steps=trainer.steps,
        seconds=time.perf_counter() - began,
        before=trainer.progress.before,
        after=after,
        notes=notes,
    )


def _plan(trainer: Trainer) -> RunPlan:
    from mlx_lm.utils import get_total_parameters

    shards = trainer.policy.network.shards
    tensors = list(trainable(trainer.model).values())
    return RunPlan(
        run=trainer.folder.path,
        steps=trainer.steps,
        first_step=trainer.progress.step,
        pairs={name: len(one.indices) for name, one in trainer.sets.items()},
        what=trainer.train_set.what,
        steps_per_epoch=trainer.epochs.steps,
        steps_per_eval=trainer.config.steps_per_eval,
        memory_limit=parse_memory(limit) if (limit := trainer.config.memory_limit) else usable_memory(),
        trained_parameters=sum(v.size for v in tensors),
        all_parameters=shards.parameters if shards else get_total_parameters(trainer.model),
        ranks=trainer.group.size,
        gradient_bytes=ring_bytes(trainer.group.size, tensors),
    )
