"""Build the components of a run from its config: datasets, model, reference, loss."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_dpo.adapters.adapter_settings import require_settings_of_adapter
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import RowError, UserError
from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN, ExampleSet, ExampleSets, Rows, open_example_sets
from mlx_dpo.evaluation.loss_setup import loss_from_config, resolve_for_examples, resolve_loss_settings
from mlx_dpo.evaluation.measuring import ExampleMeasurement, evaluate_examples
from mlx_dpo.evaluation.metrics import metric_names
from mlx_dpo.evaluation.reference_setup import (
    POLICY_REFERENCES,
    attach_reference,
    precompute_with_reference_model,
    require_reference_in_memory,
)
from mlx_dpo.forward.backend_check import require_usable_backend
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import chat_template_note, load_tokenizer
from mlx_dpo.forward.oom_fallback import NO_FALLBACK, OomFallback
from mlx_dpo.forward.policy import Policy
from mlx_dpo.forward.reward_network import with_reward_head
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.lineage.lineage_file import Lineage
from mlx_dpo.lineage.lineage_steps import run_lineage
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.objectives import LossStates, WeightedLoss
from mlx_dpo.training.batch_loss import BatchLoss, PreferenceLoss
from mlx_dpo.training.batch_source import BatchSource, ShuffledDataset
from mlx_dpo.training.checkpoint import TrainingState, read_training_state
from mlx_dpo.training.checkpoint_saver import CheckpointSaver
from mlx_dpo.training.events import Metrics, Note
from mlx_dpo.training.listener import Listener, ListenerProgress
from mlx_dpo.training.on_policy.on_policy_checks import check_on_policy
from mlx_dpo.training.on_policy.on_policy_setup import (
    JudgeOrFunction,
    OnPolicyInputs,
    Prompts,
    make_rollout_source,
    open_on_policy,
)
from mlx_dpo.training.policy_gradient.policy_gradient_checks import check_policy_gradient, resolve_policy_gradient
from mlx_dpo.training.policy_gradient.policy_gradient_loss import PolicyGradientLoss
from mlx_dpo.training.policy_gradient.policy_gradient_scorer import PolicyGradientScorer
from mlx_dpo.training.policy_gradient.policy_gradient_setup import make_trajectory_source, with_policy_gradient
from mlx_dpo.training.policy_setup import common_fallback, load_policy, make_memory_model, resolved_adapter_settings
from mlx_dpo.training.provenance import DATA_KEYS
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.scorer import CompletionLogProbScorer, ReferenceSync, Scorer
from mlx_dpo.training.trainer import Trainer


@dataclass(frozen=True)
class TrainInputs:
    """Arguments of `train`.

    Attributes:
        config: the settings.
        model: an mlx-lm model in memory; None to load `config.model`.
        tokenizer: its tokenizer; None to load it.
        rows: rows to train on; None for those of `config.data`.
        valid_rows: held-out rows; None for those of `config.valid_data`.
        listener: receives the run's events.
        oom_fallback: memory reductions after an out-of-memory crash.
        prompts: prompts to answer in on-policy training; None for those of `config.prompts`.
        judge: compares the answers; None for that of `config.judge`.
    """

    config: TrainConfig
    model: nn.Module | None
    tokenizer: Any
    rows: Rows | None
    valid_rows: Rows | None
    listener: Listener
    oom_fallback: OomFallback = NO_FALLBACK
    prompts: Prompts | None = None
    judge: JudgeOrFunction | None = None


@dataclass(frozen=True)
class TrainComponents:
    """The objects built from a config: policy, memory model, loss and datasets.

    Attributes:
        config: the settings, with the values that depend on model, loss and data resolved.
        policy: the policy.
        memory_model: decides how large micro-batches are.
        loss: the loss.
        example_sets: examples to train on, and those held out.
        skipped_rows: rows that can't be used and are skipped.
        communicator: ranks that train together.
        lineage: what the adapter is derived from.
        on_policy: prompts and judge; None if the examples to train on are not sampled.
    """

    config: TrainConfig
    policy: Policy
    memory_model: MemoryModel
    loss: WeightedLoss
    example_sets: ExampleSets
    skipped_rows: list[RowError]
    communicator: Communicator
    lineage: Lineage
    on_policy: OnPolicyInputs | None = None

    @property
    def train_set(self) -> ExampleSet:
        """Examples to train on."""
        return self.example_sets[TRAIN]

    @property
    def num_examples(self) -> int:
        """How many examples there are to train on, or prompts whose completions are sampled."""
        return len(self.on_policy.prompts) if self.on_policy else len(self.train_set.indices)

    @property
    def example_kind(self) -> str:
        """What these are called."""
        return "prompts" if self.on_policy else self.train_set.example_kind

    def make_trainer(
        self,
        folder: RunFolder,
        listener: Listener,
        stop: threading.Event | None = None,
        source: BatchSource | None = None,
    ) -> Trainer:
        """Create a trainer at step 0.

        Args:
            folder: the run's folder.
            listener: receives the run's events.
            stop: set it to end the run after the current step.
            source: provides the examples; by default those to train on, shuffled, or sampled from the policy.
        """
        config = self.config
        return Trainer(
            config,
            source or self._make_source(listener),
            *self._scorer_and_loss(),
            self.evaluate if HELD_OUT in self.example_sets else None,
            CheckpointSaver(folder, config, self.policy.spec, listener, is_main=self.communicator.is_main),
            listener,
            stop or threading.Event(),
            self.communicator,
        )

    def _scorer_and_loss(self) -> tuple[Scorer, BatchLoss]:
        config, policy, memory_model, loss = self.config, self.policy, self.memory_model, self.loss
        if loss.policy_gradient:
            return PolicyGradientScorer(policy, memory_model, loss, config.max_length), PolicyGradientLoss(loss)
        references, sync = {name: examples.reference for name, examples in self.example_sets.items()}, None
        if config.reference_sync_steps:
            sync = ReferenceSync(config.reference_sync_steps, config.reference_mixup or ReferenceSync.mixup)
        scorer = CompletionLogProbScorer(policy, memory_model, loss, references, config.max_length, sync)
        return scorer, PreferenceLoss(loss)

    def _make_source(self, listener: Listener) -> BatchSource:
        config, train_set = self.config, self.train_set
        if self.on_policy is None:
            return ShuffledDataset(train_set, config.batch_size, config.seed)
        make_source = make_trajectory_source if self.loss.policy_gradient else make_rollout_source
        return make_source(
            config, self.loss, self.on_policy, self.policy, self.memory_model, train_set, self.communicator, listener
        )

    def evaluate(
        self, step: int, states: LossStates, on_progress: Callable[[int, int], None]
    ) -> tuple[Metrics, EvalSnapshot]:
        """Measure the held-out examples.

        Args:
            step: optimizer steps done.
            states: running state of the loss.
            on_progress: receives the numbers of measured examples and of all examples.

        Returns:
            Mean metrics, and the measurements.
        """
        held_out, measurements = self.example_sets[HELD_OUT], list[ExampleMeasurement]()
        metrics = evaluate_examples(
            self.memory_model,
            held_out.examples,
            held_out.indices,
            held_out.reference,
            self.loss,
            batch_size=self.config.batch_size,
            loss_state=states,
            on_progress=lambda done: on_progress(done, len(held_out.indices)),
            on_measurement=measurements.append,
            communicator=self.communicator,
        )
        names = metric_names(self.loss)
        return metrics, EvalSnapshot(step, measurements, held_out, self.policy, self.memory_model, names)


def build_components(
    inputs: TrainInputs, checkpoint: Path | None = None, communicator: Communicator = SINGLE_PROCESS
) -> TrainComponents:
    """Open the examples, load the model and attach the trainable layers.

    Args:
        inputs: arguments of `train`.
        checkpoint: folder of a checkpoint, whose reference log-probs are not computed again.
        communicator: ranks that train together.

    Raises:
        UserError: the user must change something.
    """
    config, listener = inputs.config, inputs.listener
    loss = loss_from_config(config)
    config = resolve_policy_gradient(resolve_loss_settings(config, loss), loss)
    require_settings_of_adapter(config, {})
    require_reference_in_memory(config, loss)
    check_on_policy(
        config,
        loss,
        has_prompts=inputs.prompts is not None,
        has_judge=inputs.judge is not None,
        has_rows=inputs.rows is not None,
    )
    has_valid_rows = inputs.valid_rows is not None
    check_policy_gradient(config, loss, has_judge=inputs.judge is not None, has_valid_rows=has_valid_rows)
    for text in require_usable_backend():
        listener.handle(Note(text))
    if (inputs.model is None) != (inputs.tokenizer is None):
        raise UserError("a model in memory needs its tokenizer: pass both", field="model")
    tokenizer = inputs.tokenizer or load_tokenizer(config.model)
    if inputs.tokenizer is None and (note := chat_template_note(config.model)):
        listener.handle(Note(note))
    skipped_rows: list[RowError] | None = [] if config.bad_rows == "skip" else None

    progress = ListenerProgress(listener)
    try:
        sets = open_example_sets(
            config, loss, tokenizer, inputs.rows, inputs.valid_rows, progress, skipped_rows, communicator
        )
    except RowError as error:
        advice = "--bad-rows skip leaves such rows out and lists them; `mlx-dpo data check` shows them all."
        error.hint = f"{error.hint}\n{advice}" if error.hint else advice
        raise
    config = resolve_for_examples(config, loss, sets[TRAIN])
    on_policy = None
    if config.on_policy:
        on_policy = open_on_policy(config, sets[TRAIN].examples.encoder, inputs.prompts, inputs.judge, progress)
    if (config.patience or config.keep_best) and HELD_OUT not in sets:
        field = "patience" if config.patience else "keep_best"
        raise UserError("no examples are held out to measure", field=field, hint="Give rows with --valid-data.")
    if checkpoint:
        _restore_reference_logps(sets, read_training_state(checkpoint))
    if config.reference not in POLICY_REFERENCES:
        precompute_with_reference_model(config, loss, tokenizer, sets, communicator)
    progress.begin("Loading the model")
    policy, model_folder = load_policy(config, inputs.model, communicator, progress)
    if loss.needs_reward_head:
        policy = with_reward_head(policy, config.init_adapter, config.seed)
    elif loss.policy_gradient:
        policy = with_policy_gradient(policy, config, loss.policy_gradient)
    check_vocabulary(policy.network.model, tokenizer)
    for text in policy.notes:
        listener.handle(Note(text))
    progress.begin("Measuring the memory that the model needs")
    if checkpoint and config.micro_batch_tokens is None:  # another size would round otherwise
        config = config.replace(micro_batch_tokens=read_yaml(checkpoint / CONFIG_FILE).get("micro_batch_tokens"))
    config, memory_model = make_memory_model(config, policy, common_fallback(inputs.oom_fallback, communicator))
    attach_reference(config, loss, policy, memory_model, sets, communicator)
    config = config.replace(**resolved_adapter_settings(policy.spec, config))
    lineage = run_lineage(identify_model(config.model, model_folder), config.loss, config.init_adapter)
    return TrainComponents(
        config, policy, memory_model, loss, sets, skipped_rows or [], communicator, lineage, on_policy
    )


def _restore_reference_logps(example_sets: ExampleSets, state: TrainingState) -> None:
    """Use the reference log-probs of a checkpoint if the rows are unchanged."""
    for name, table in state.scorer.arrays.items():
        digest = state.progress.provenance.get(DATA_KEYS[name])
        if name in example_sets and digest == example_sets[name].examples.source.digest:
            example_sets[name].reference.table = table
