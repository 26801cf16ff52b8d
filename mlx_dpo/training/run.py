"""`train`: from a config to a finished run's folder."""

from __future__ import annotations

import threading
import time
from typing import Any

import mlx.nn as nn

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.communicator import Communicator, ring_all_reduce_bytes
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import TRAIN, Rows
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES
from mlx_dpo.forward.network import PromptSharing
from mlx_dpo.forward.oom_fallback import NO_FALLBACK, OomFallback
from mlx_dpo.training.components import TrainComponents, TrainInputs, build_components
from mlx_dpo.training.data_notes import encoding_notes, parsing_notes, row_notes
from mlx_dpo.training.events import Note, RunEnd, RunPlan, RunStart, TrainResult
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.on_policy.on_policy_setup import JudgeOrFunction, Prompts
from mlx_dpo.training.policy_setup import memory_limit
from mlx_dpo.training.resume import start_trainer, starting_checkpoint
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.trainer import Trainer


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
    prompts: Prompts | None = None,
    judge: JudgeOrFunction | None = None,
) -> TrainResult:
    """Train a policy on preference pairs, or on its own answers, and leave a run's folder at `config.adapter_path`.

    If a launcher has started several processes, each calls this function, and together they train one adapter. The
    listener of each receives the run's events; only rank 0 writes.

    Args:
        config: all settings. `config.model` is loaded unless `model` and `tokenizer` are given.
        model: an mlx-lm model in memory, without adapters; it is adapted and trained in place.
        tokenizer: its tokenizer, as mlx_lm.load returns it.
        rows: preference rows in memory, in any accepted format, instead of `config.data`.
        valid_rows: held-out rows in memory, instead of `config.valid_data`.
        listener: receives the run's events; trackers are listeners too (`create_trackers(config.report_to)`).
        resume: resume from the last checkpoint in the folder. An unfinished run with this very config, model and data
            is resumed in any case.
        resume_anyway: resume even if config, model or data have changed.
        oom_fallback: memory reductions to apply; used by the supervisor after an out-of-memory crash.
        stop: set it to end the run; finished steps are saved. With several ranks, after the current step.
        prompts: with `config.on_policy`, prompts in memory instead of `config.prompts`: texts, or lists of messages.
        judge: with `config.on_policy`, a judge in memory instead of `config.judge`, or a function of (prompt, answer)
            that returns a score, or of (prompt, first, second) that returns 1, 0 or 0.5.

    Returns:
        The run's folder and its held-out metrics before and after.

    Raises:
        UserError: the user must change something, on any rank; the message says what, where, and what to do.
        Interrupted: `stop` was set, on any rank.
        RankLost: the connection to another rank was lost.
    """
    listener, folder = listener or Listener(), RunFolder(config.adapter_path)
    inputs = TrainInputs(config, model, tokenizer, rows, valid_rows, listener, oom_fallback, prompts, judge)
    try:
        communicator = Communicator.join(data_parallel=not config.tensor_parallel)
        with communicator.fail_together():
            _check_ranks(communicator, config)
            with starting_checkpoint(folder, communicator, resume or resume_anyway) as checkpoint:
                components = build_components(inputs, checkpoint, communicator)
                trainer = components.make_trainer(folder, listener, stop)
                start_trainer(trainer, components, checkpoint, allow_changes=resume_anyway)
            return _run(trainer, components)
    finally:
        folder.unlock()
        listener.handle(RunEnd())


def _check_ranks(communicator: Communicator, config: TrainConfig) -> None:
    """Raise `UserError` if a setting does not fit the number of ranks."""
    for field in ("data", "valid_data"):
        if communicator.size > 1 and getattr(config, field) == "-":
            hint = "Name a file that every machine has."
            raise UserError("stdin can't be used with several processes", field=field, hint=hint)
    if not config.tensor_parallel:
        return
    if communicator.size == 1:
        hint = "Start several with mlx.launch or --workers."
        raise UserError("--tensor-parallel needs at least two processes", field="tensor_parallel", hint=hint)
    if config.reference not in POLICY_REFERENCES:
        hint = "Use --reference initial, base or none."
        raise UserError("--tensor-parallel can't shard a reference that is another model", field="reference", hint=hint)


def _run(trainer: Trainer, components: TrainComponents) -> TrainResult:
    """Train, with notes on the data before and after."""
    began, listener, sets = time.perf_counter(), trainer.listener, components.example_sets
    listener.handle(RunStart(_run_plan(trainer, components)))
    sharing = components.policy.network.sharing
    if sharing is not PromptSharing.ANY_PROMPTS:
        family = type(trainer.model).__module__.rpartition(".")[2]
        listener.handle(Note(f"what goes through a model of this type ({family}): {sharing.value}."))
    notes_before = encoding_notes(sets)  # on what is encoded already
    notes_on_rows = row_notes(components.train_set, components.loss, components.config.loss)
    for text in [*parsing_notes(sets), *notes_on_rows, *notes_before]:
        listener.handle(Note(text))
    try:
        metrics = trainer.run()
    finally:
        notes = encoding_notes(sets)
        for text in notes:
            if text not in notes_before:
                listener.handle(Note(text))
    return TrainResult(
        run=trainer.saver.folder.path,
        steps=trainer.steps,
        seconds=time.perf_counter() - began,
        before=trainer.progress.metrics_before,
        after=metrics,
        notes=notes,
    )


def _run_plan(trainer: Trainer, components: TrainComponents) -> RunPlan:
    from mlx_lm.utils import get_total_parameters

    shards, tensors = components.policy.network.shards, list(trainable_tensors(trainer.model).values())
    num_examples = {name: len(example_set.indices) for name, example_set in components.example_sets.items()}
    num_examples[TRAIN] = components.num_examples
    return RunPlan(
        run=trainer.saver.folder.path,
        steps=trainer.steps,
        first_step=trainer.progress.step,
        evaluates_first=trainer.progress.evaluation_is_pending(trainer.steps, trainer.config.steps_per_eval),
        num_examples=num_examples,
        example_kind=components.example_kind,
        steps_per_epoch=trainer.source.steps_per_epoch or 0,
        steps_per_eval=trainer.config.steps_per_eval,
        memory_limit=memory_limit(trainer.config),
        trainable_parameters=sum(tensor.size for tensor in tensors),
        total_parameters=shards.num_parameters if shards else get_total_parameters(trainer.model),
        ranks=trainer.communicator.size,
        gradient_bytes=ring_all_reduce_bytes(trainer.communicator.size, tensors),
    )
