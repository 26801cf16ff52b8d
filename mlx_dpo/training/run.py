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

from mlx_dpo.adapters.adapter_folder import read_adapter, set_tensors
from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.config import TrainConfig, dump_yaml, read_yaml
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator, ring_all_reduce_bytes
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN, ExampleSet, ExampleSets, Rows, open_example_sets
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES, attach_reference, precompute_with_reference_model
from mlx_dpo.forward.device import keep_weights_resident, parse_memory, usable_memory
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import PromptSharing
from mlx_dpo.forward.oom_fallback import NO_FALLBACK, OomFallback
from mlx_dpo.forward.policy import Policy, make_policy
from mlx_dpo.objectives import LOSS_SETTINGS, WeightedLoss
from mlx_dpo.training.checkpoint import TrainingState, read_training_state
from mlx_dpo.training.data_notes import length_notes, row_notes
from mlx_dpo.training.listener import Listener, RunPlan, TrainResult
from mlx_dpo.training.provenance import changed_settings, compute_provenance, provenance_changes
from mlx_dpo.training.run_folder import CONFIG_FILE, RunFolder, SaveError
from mlx_dpo.training.trainer import Trainer

SKIPPED_ROWS_FILE = "skipped.jsonl"  # in the run's folder: rows that were left out


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
    oom_fallback: OomFallback = NO_FALLBACK,
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
    given = TrainInputs(config, model, tokenizer, rows, valid_rows, listener, oom_fallback)
    try:
        communicator = Communicator.join(data_parallel=not config.tensor_parallel)
        with communicator.fail_together():
            _check_ranks(communicator, config)
            prepared = _prepare(
                given, folder, communicator, resume or resume_anyway, resume_anyway, stop or threading.Event()
            )
            return _run(prepared)
    finally:
        folder.unlock()
        listener.on_run_end()


def _check_ranks(communicator: Communicator, config: TrainConfig) -> None:
    """Raises `UserError` where a knob does not go with so many ranks."""
    for field in ("data", "valid_data"):
        if communicator.size > 1 and getattr(config, field) == "-":
            hint = "Name a file that every machine has."
            raise UserError("one stdin can't be read by several processes", field=field, hint=hint)
    if not config.tensor_parallel:
        return
    if communicator.size == 1:
        hint = "Start several, by mlx.launch or with --workers."
        raise UserError("one process has no other to share a model with", field="tensor_parallel", hint=hint)
    if config.reference not in POLICY_REFERENCES:
        hint = "Use --reference initial, base or none."
        raise UserError("another model is not shared out, and would be whole in memory", field="reference", hint=hint)


@dataclass(frozen=True)
class TrainInputs:
    """What `train` was given."""

    config: TrainConfig
    model: nn.Module | None
    tokenizer: Any
    rows: Rows | None
    valid_rows: Rows | None
    listener: Listener
    oom_fallback: OomFallback = NO_FALLBACK


@dataclass(frozen=True)
class TrainComponents:
    """What a run trains with: the config with the knobs as the model took them, and all that came of it."""

    config: TrainConfig
    policy: Policy
    budget: MemoryModel
    loss: WeightedLoss
    example_sets: ExampleSets
    skipped_rows: list[RowError]
    communicator: Communicator

    def make_trainer(self, folder: RunFolder, listener: Listener, stop: threading.Event | None = None) -> Trainer:
        """A trainer that stands before its first step."""
        stop = stop or threading.Event()
        return Trainer(
            self.config,
            self.policy,
            self.budget,
            self.loss,
            self.example_sets,
            folder,
            listener,
            stop,
            self.communicator,
        )


def _prepare(
    inputs: TrainInputs,
    folder: RunFolder,
    communicator: Communicator,
    resume: bool,
    anyway: bool,
    stop: threading.Event,
) -> Trainer:
    """A trainer that stands at its first step, or where a checkpoint was written; see `train`."""
    with _starting_checkpoint(folder, communicator, resume) as checkpoint:
        exact = None if checkpoint is None else read_training_state(checkpoint)
        found = build_components(inputs, exact.reference_tables if exact else {}, communicator)
        now = compute_provenance(found.policy.fingerprint, found.example_sets)
        _require_equal_ranks(communicator, now)
        if checkpoint and exact and not anyway:
            _require_unchanged(checkpoint, exact, found.config, now)
        if communicator.is_main:
            folder.create()
        trainer = found.make_trainer(folder, inputs.listener, stop)
        trainer.progress.made_of = now
        if checkpoint and exact:
            set_tensors(found.policy.model, read_adapter(checkpoint)[1], Where(str(checkpoint)))
            trainer.restore(exact, provenance=now)
            inputs.listener.on_note(f"going on with the run in {folder.path}, after step {exact.progress.step:,}.")
    if communicator.is_main:
        _write_config_and_skipped_rows(folder, found, inputs.listener)
    return trainer


@contextmanager
def _starting_checkpoint(folder: RunFolder, communicator: Communicator, resume: bool) -> Iterator[Path | None]:
    """The checkpoint to go on from, None where a run begins; of other ranks than 0, a copy of rank 0's.

    Raises `UserError` where there is none to resume, or the folder holds a finished run.
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


def _require_equal_ranks(communicator: Communicator, now: dict[str, str]) -> None:
    """Raises `UserError` where what another rank trains with is not what rank 0 does."""
    every = communicator.all_gather_json(now)
    for rank, theirs in enumerate(every):
        if changed := provenance_changes(every[0], theirs):
            hint = "Every machine needs the same model, rows and versions of mlx, mlx-lm and mlx-dpo."
            raise UserError(f"rank {rank} differs from rank 0: " + "; ".join(changed), hint=hint)


def _require_unchanged(checkpoint: Path, exact: TrainingState, config: TrainConfig, now: dict[str, str]) -> None:
    """Raises `UserError` where the checkpoint is of other knobs, another model or other rows."""
    knobs = changed_settings(read_yaml(checkpoint / CONFIG_FILE), config)
    if changed := [*knobs, *provenance_changes(exact.progress.made_of, now)]:
        raise UserError(
            "what this run was made of is not what it was: " + "; ".join(changed),
            where=Where(str(checkpoint)),
            hint="Put it back, choose another --adapter-path, or go on all the same with --resume-anyway.",
        )


def _write_config_and_skipped_rows(folder: RunFolder, components: TrainComponents, listener: Listener) -> None:
    try:
        folder.write_text(CONFIG_FILE, dump_yaml(components.config))
        if components.skipped_rows:
            folder.write_text(
                SKIPPED_ROWS_FILE, "".join(json.dumps(row) + "\n" for row in map(_skipped_row, components.skipped_rows))
            )
            listener.on_note(
                f"{len(components.skipped_rows):,} rows were left out; {folder.path / SKIPPED_ROWS_FILE} lists them."
            )
    except SaveError as error:
        raise UserError(f"the output folder can't be written: {error}", where=Where(str(folder.path))) from None


def _skipped_row(error: RowError) -> dict[str, Any]:
    where = error.where or Where("")
    return {"file": where.file, "line": where.line, "field": error.field, "kind": error.kind, "message": error.message}


def build_components(
    inputs: TrainInputs, reference_tables: Mapping[str, np.ndarray], communicator: Communicator = SINGLE_PROCESS
) -> TrainComponents:
    """Open the pairs, load the model and attach what is trained; see `train`.

    Args:
        references: tables of reference log-probs known already, by pair set.
    """
    config, model, tokenizer, listener = inputs.config, inputs.model, inputs.tokenizer, inputs.listener
    loss = loss_from_config(config)
    config = resolve_loss_settings(config, loss)
    if (model is None) != (tokenizer is None):
        raise UserError("a model in memory comes with its tokenizer: give both", field="model")
    tokenizer = tokenizer or load_tokenizer(config.model)
    bad: list[RowError] | None = [] if config.bad_rows == "skip" else None
    sets = open_example_sets(
        config, loss, tokenizer, inputs.rows, inputs.valid_rows, listener.on_preparing, bad, communicator
    )
    config = resolve_for_examples(config, loss, sets[TRAIN])
    if (config.patience or config.keep_best) and HELD_OUT not in sets:
        field = "patience" if config.patience else "keep_best"
        raise UserError("nothing is held out to measure by", field=field, hint="Give rows with --valid-data.")
    for name, table in reference_tables.items():
        sets[name].reference.table = table
    if config.reference not in POLICY_REFERENCES:
        precompute_with_reference_model(config, loss, tokenizer, sets, communicator)
    listener.on_preparing("Loading the model")
    policy = _policy(config, model, communicator)
    limit = parse_memory(config.memory_limit) if config.memory_limit else None
    caution = _common_fallback(inputs.oom_fallback, communicator)
    recompute = config.grad_checkpoint or caution.grad_checkpoint
    budget = MemoryModel.for_training(policy.network, usable_memory(), limit, recompute, caution.micro_batch_share)
    attach_reference(config, loss, policy, budget, sets, communicator)
    resolved = config.replace(**_resolved_adapter_settings(policy.spec, config))
    return TrainComponents(resolved, policy, budget, loss, sets, bad or [], communicator)


def loss_from_config(config: TrainConfig) -> WeightedLoss:
    """The objective of a config, with its knobs. Raises `UserError`."""
    likelihood = f",sft={config.rpo_alpha}" if config.rpo_alpha else ""
    return WeightedLoss.parse(
        config.loss + likelihood,
        {name: getattr(config, name) for name in LOSS_SETTINGS},
        use_weighting=config.use_weighting,
        ld_alpha=1.0 if config.ld_alpha is None else config.ld_alpha,
    )


def resolve_loss_settings(config: TrainConfig, loss: WeightedLoss) -> TrainConfig:
    """The config with the loss's knobs as they were resolved, and no reference where the loss has none.

    Raises `UserError` where such a loss is given a reference.
    """
    if not loss.needs_reference and config.reference not in ("none", TrainConfig().reference):
        hint = "Leave --reference out; `mlx-dpo losses` tells which losses have one."
        raise UserError(f"the loss {config.loss!r} has no reference", field="reference", hint=hint)
    if loss.needs_kl and config.batch_size == 1:
        hint = "It is estimated on the answers to other prompts of the batch: --batch-size 8 or more is good."
        raise UserError(f"the loss {config.loss!r} asks for a batch's KL", field="batch_size", hint=hint)
    if config.reference_sync_steps and config.reference not in ("initial", "base"):
        raise UserError("only --reference initial or base can move", field="reference_sync_steps")
    if config.reference_mixup is not None and not config.reference_sync_steps:
        raise UserError("nothing is mixed without --reference-sync-steps", field="reference_mixup")
    knobs = {name: loss.settings[name] for name in LOSS_SETTINGS if name in loss.settings}
    return config.replace(**knobs, **({} if loss.needs_reference else {"reference": "none"}))


def resolve_for_examples(config: TrainConfig, loss: WeightedLoss, examples: ExampleSet) -> TrainConfig:
    """The config as it holds for such examples. Raises `UserError` where a knob does not go with them."""
    if not examples.is_unpaired:
        return config
    for name, given in (("ld_alpha", config.ld_alpha is not None), ("use_weighting", config.use_weighting)):
        if given:
            raise UserError("it is of pairs, and the rows are single completions", field=name)
    return config.replace(reference="none") if loss.likelihood_only else config


def _common_fallback(caution: OomFallback, communicator: Communicator) -> OomFallback:
    """Where all ranks run all micro-batches, what the most careful of them asks for."""
    if communicator.data_parallel:
        return caution
    every = [OomFallback(**told) for told in communicator.all_gather_json(asdict(caution))]
    return OomFallback(min(one.micro_batch_share for one in every), any(one.grad_checkpoint for one in every))


def _policy(config: TrainConfig, model: nn.Module | None, communicator: Communicator) -> Policy:
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
    sharers = None if communicator.data_parallel else communicator.mlx_group
    model = load_model(config.model, lazy=sharers is not None).model if model is None else model
    return make_policy(model, spec, config.init_adapter, sharers)


def _resolved_adapter_settings(spec: AdapterSpec, config: TrainConfig) -> dict[str, Any]:
    """The knobs as the model took them; an initial adapter brings its own."""
    known = {k: v for k, v in asdict(spec).items() if k in config.to_mapping()}
    return known if spec.keys is None else {**known, "lora_keys": list(spec.keys)}


def _run(trainer: Trainer) -> TrainResult:
    began, listener = time.perf_counter(), trainer.listener
    listener.on_run_start(_plan(trainer))
    if trainer.policy.network.sharing is not PromptSharing.ANY:
        family = type(trainer.model).__module__.rpartition(".")[2]
        listener.on_note(f"what goes through a model of this type ({family}): {trainer.policy.network.sharing.value}.")
    for note in row_notes(trainer.train_set, trainer.loss, trainer.config.loss):
        listener.on_note(note)
    said = length_notes(trainer.example_sets)  # of what is known before training
    for note in said:
        listener.on_note(note)
    try:
        after = trainer.run()
    finally:
        notes = length_notes(trainer.example_sets)
        for note in notes:
            if note not in said:
                listener.on_note(note)
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
    tensors = list(trainable_tensors(trainer.model).values())
    return RunPlan(
        run=trainer.folder.path,
        steps=trainer.steps,
        first_step=trainer.progress.step,
        num_examples={name: len(one.indices) for name, one in trainer.example_sets.items()},
        example_kind=trainer.train_set.example_kind,
        steps_per_epoch=trainer.epochs.steps_per_epoch,
        steps_per_eval=trainer.config.steps_per_eval,
        memory_limit=parse_memory(limit) if (limit := trainer.config.memory_limit) else usable_memory(),
        trainable_parameters=sum(v.size for v in tensors),
        total_parameters=shards.num_parameters if shards else get_total_parameters(trainer.model),
        ranks=trainer.communicator.size,
        gradient_bytes=ring_all_reduce_bytes(trainer.communicator.size, tensors),
    )
