"""Build the components of a run from its config: datasets, model, reference, loss."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_settings import adapter_settings, require_equal_settings, require_settings_of_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import RowError, UserError
from mlx_dpo.evaluation.eval_snapshot import EvalSnapshot
from mlx_dpo.evaluation.example_sets import HELD_OUT, TRAIN, ExampleSet, ExampleSets, Rows, open_example_sets
from mlx_dpo.evaluation.loss_setup import loss_from_config, resolve_for_examples, resolve_loss_settings
from mlx_dpo.evaluation.measuring import ExampleMeasurement, evaluate_examples
from mlx_dpo.evaluation.reference_setup import (
    POLICY_REFERENCES,
    attach_reference,
    precompute_with_reference_model,
    require_reference_in_memory,
)
from mlx_dpo.forward.device import keep_weights_resident, parse_memory, runs_on_cpu, usable_memory
from mlx_dpo.forward.memory_model import SATURATING_TOKENS, MemoryModel
from mlx_dpo.forward.micro_batch_size import choose_micro_batch_tokens
from mlx_dpo.forward.model_loading import chat_template_note, load_model, load_tokenizer
from mlx_dpo.forward.oom_fallback import NO_FALLBACK, OomFallback
from mlx_dpo.forward.policy import Policy, make_policy
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.lineage.lineage_file import Lineage
from mlx_dpo.lineage.lineage_steps import run_lineage
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.objectives import LossStates, WeightedLoss
from mlx_dpo.training.batch_loss import PreferenceLoss
from mlx_dpo.training.batch_source import BatchSource, ShuffledDataset
from mlx_dpo.training.checkpoint import TrainingState, read_training_state
from mlx_dpo.training.checkpoint_saver import CheckpointSaver
from mlx_dpo.training.events import Metrics, Note
from mlx_dpo.training.listener import Listener, ListenerProgress
from mlx_dpo.training.provenance import DATA_KEYS
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.scorer import CompletionLogProbScorer, ReferenceSync
from mlx_dpo.training.trainer import Trainer
from mlx_dpo.utils.progress import Progress


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
    """

    config: TrainConfig
    model: nn.Module | None
    tokenizer: Any
    rows: Rows | None
    valid_rows: Rows | None
    listener: Listener
    oom_fallback: OomFallback = NO_FALLBACK


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
    """

    config: TrainConfig
    policy: Policy
    memory_model: MemoryModel
    loss: WeightedLoss
    example_sets: ExampleSets
    skipped_rows: list[RowError]
    communicator: Communicator
    lineage: Lineage

    @property
    def train_set(self) -> ExampleSet:
        """Examples to train on."""
        return self.example_sets[TRAIN]

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
            source: provides the examples; those to train on, shuffled, by default.
        """
        config, references = self.config, {name: examples.reference for name, examples in self.example_sets.items()}
        sync = None
        if config.reference_sync_steps:
            sync = ReferenceSync(config.reference_sync_steps, config.reference_mixup or ReferenceSync.mixup)
        return Trainer(
            config,
            source or ShuffledDataset(self.train_set, config.batch_size, config.seed),
            CompletionLogProbScorer(self.policy, self.memory_model, self.loss, references, config.max_length, sync),
            PreferenceLoss(self.loss),
            self.evaluate if HELD_OUT in self.example_sets else None,
            CheckpointSaver(folder, config, self.policy.spec, listener, is_main=self.communicator.is_main),
            listener,
            stop or threading.Event(),
            self.communicator,
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
        return metrics, EvalSnapshot(step, measurements, held_out, self.policy, self.memory_model)


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
    config = resolve_loss_settings(config, loss)
    require_settings_of_adapter(config, {})
    require_reference_in_memory(config, loss)
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
    if (config.patience or config.keep_best) and HELD_OUT not in sets:
        field = "patience" if config.patience else "keep_best"
        raise UserError("no examples are held out to measure", field=field, hint="Give rows with --valid-data.")
    if checkpoint:
        _restore_reference_logps(sets, read_training_state(checkpoint))
    if config.reference not in POLICY_REFERENCES:
        precompute_with_reference_model(config, loss, tokenizer, sets, communicator)
    progress.begin("Loading the model")
    policy, model_folder = _load_policy(config, inputs.model, communicator, progress)
    check_vocabulary(policy.network.model, tokenizer)
    for text in policy.notes:
        listener.handle(Note(text))
    progress.begin("Measuring the memory that the model needs")
    if checkpoint and config.micro_batch_tokens is None:  # another size would round otherwise
        config = config.replace(micro_batch_tokens=read_yaml(checkpoint / CONFIG_FILE).get("micro_batch_tokens"))
    config, memory_model = _memory_model(config, policy, _common_fallback(inputs.oom_fallback, communicator))
    attach_reference(config, loss, policy, memory_model, sets, communicator)
    config = config.replace(**_resolved_adapter_settings(policy.spec, config))
    lineage = run_lineage(identify_model(config.model, model_folder), config.loss, config.init_adapter)
    return TrainComponents(config, policy, memory_model, loss, sets, skipped_rows or [], communicator, lineage)


def memory_limit(config: TrainConfig) -> int:
    """Return the bytes that a run may use."""
    return parse_memory(config.memory_limit) if config.memory_limit else usable_memory()


def adapter_spec(config: TrainConfig) -> AdapterSpec:
    """Return the adapter settings of a config, with layers and keys not resolved yet."""
    return AdapterSpec(
        fine_tune_type=config.fine_tune_type,
        num_layers=config.num_layers,
        rank=config.rank,
        scale=config.scale,
        dropout=config.dropout,
        keys=None if config.lora_keys is None else tuple(config.lora_keys),
        fuse_bits=config.fuse_bits,
    )


def _restore_reference_logps(example_sets: ExampleSets, state: TrainingState) -> None:
    """Use the reference log-probs of a checkpoint if the rows are unchanged."""
    for name, table in state.scorer.arrays.items():
        digest = state.progress.provenance.get(DATA_KEYS[name])
        if name in example_sets and digest == example_sets[name].examples.source.digest:
            example_sets[name].reference.table = table


def _common_fallback(fallback: OomFallback, communicator: Communicator) -> OomFallback:
    """The reductions of all ranks combined, if all of them run the same micro-batches."""
    if communicator.data_parallel:
        return fallback
    fallbacks = [OomFallback(**values) for values in communicator.all_gather_json(asdict(fallback))]
    share = min(item.micro_batch_share for item in fallbacks)
    return OomFallback(share, any(item.grad_checkpoint for item in fallbacks))


def _memory_model(config: TrainConfig, policy: Policy, fallback: OomFallback) -> tuple[TrainConfig, MemoryModel]:
    """The config, with the micro-batch size if that was measured, and the memory model."""
    memory_model = MemoryModel.for_training(
        policy.network,
        usable_memory(),
        parse_memory(config.memory_limit) if config.memory_limit else None,
        config.grad_checkpoint or fallback.grad_checkpoint,
        fallback.micro_batch_share,
        config.micro_batch_tokens or SATURATING_TOKENS,
    )
    if config.micro_batch_tokens or runs_on_cpu():
        return config, memory_model
    tokens = choose_micro_batch_tokens(memory_model)
    memory_model = replace(memory_model, max_tokens=int(fallback.micro_batch_share * tokens))
    return config.replace(micro_batch_tokens=tokens), memory_model


def _load_policy(
    config: TrainConfig, model: nn.Module | None, communicator: Communicator, progress: Progress
) -> tuple[Policy, Path | None]:
    """The policy, and the folder that its model was loaded from; None for a model in memory."""
    keep_weights_resident()
    mx.reset_peak_memory()
    mx.random.seed(config.seed)  # of the adapters' initial values
    spec = adapter_spec(config)
    shard_group = None if communicator.data_parallel else communicator.mlx_group
    loaded = load_model(config.model, lazy=shard_group is not None) if model is None else None
    model = loaded.model if loaded else model
    limit, is_from_files = memory_limit(config), loaded is not None
    policy = make_policy(model, spec, config.init_adapter, shard_group, limit, progress, use_cache=is_from_files)
    if config.init_adapter:
        requested = adapter_settings(config)
        if config.num_layers > 0:
            requested["num_layers"] = min(config.num_layers, len(policy.model.layers))
        require_equal_settings(requested, policy.spec, config.init_adapter)
    return policy, loaded.path if loaded else None


def _resolved_adapter_settings(spec: AdapterSpec, config: TrainConfig) -> dict[str, Any]:
    """The adapter settings as resolved by the model or read from an initial adapter."""
    settings = {name: value for name, value in asdict(spec).items() if name in config.to_mapping()}
    return settings if spec.keys is None else {**settings, "lora_keys": list(spec.keys)}
