"""`evaluate`: metrics of policies on a file of pairs or completions, against a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.adapter_folder import apply_adapter
from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.column_mapping import with_renamed_columns
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.errors import UserError
from mlx_dpo.evaluation.example_sets import ExampleSet, Rows, example_reader, open_evaluation_source
from mlx_dpo.evaluation.loss_setup import (
    config_for_adapters,
    preference_loss_from_config,
    resolve_for_examples,
    resolve_loss_settings,
)
from mlx_dpo.evaluation.measuring import ExampleMeasurement, evaluate_examples
from mlx_dpo.evaluation.metric_summary import ColumnLabels, EvaluationResult
from mlx_dpo.evaluation.metrics import metric_names
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES, precompute_with_reference_model
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.reward_network import RewardNetwork, load_reward_network
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, ReferencePolicy

ProgressCallback = Callable[[int, int], None]  # (number done, number in all)


def evaluate(
    config: TrainConfig,
    *,
    adapter_path: str | Path | None = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Measure a policy on all rows of a file.

    Args:
        config: its model, data, length, reference ("base", the model without the adapter; "none"; or a model folder),
            loss and batch size are used.
        adapter_path: mlx-lm adapter folder to load onto the model.
        model: a model in memory instead of `config.model`; adapters that it has are the policy.
        tokenizer: of the model in memory.
        rows: preference rows in memory instead of `config.data`.
        progress: is called with the number of pairs done and of all pairs, first before any is run.

    Returns:
        Mean metrics with TRL's names, and `pairs`, or `completions`, their number.

    Raises:
        UserError: an argument is wrong.
    """
    config = config_for_adapters(config, [adapter_path])
    result = Evaluator(config, tokenizer=tokenizer, rows=rows).evaluate(adapter_path, model=model, progress=progress)
    return {result.unit: len(result.table), **result.metrics}


class Evaluator:
    """Opens examples once, to measure any number of policies on them, one after the other.

    Args:
        config: as `evaluate` uses it.
        by: columns of the rows to group the metrics by.
        tokenizer: of the model; default: loaded from `config.model`.
        rows: preference rows in memory instead of `config.data`.

    Attributes:
        config: with the settings that the loss and the examples resolve.
        loss: gives losses and rewards.
        examples: that are measured, with the reference's log-probs.
        lines: [examples] the line of each example's row.
        labels: by column, [examples] the row's value in it.

    Raises:
        UserError: an argument is wrong.
    """

    def __init__(
        self, config: TrainConfig, *, by: Sequence[str] = (), tokenizer: Any = None, rows: Rows | None = None
    ) -> None:
        self.loss = preference_loss_from_config(config)
        config = resolve_loss_settings(config, self.loss)
        tokenizer = tokenizer or load_tokenizer(config.model)
        encoder = ExampleEncoder.from_config(config, tokenizer)
        columns = ColumnLabels(with_renamed_columns(config.columns, example_reader(self.loss)), by)
        examples = EncodedExamples(open_evaluation_source(config, rows, columns), encoder)
        self.examples = ExampleSet.from_indices(examples, examples.usable_indices())
        self.config = resolve_for_examples(config, self.loss, self.examples)
        self.lines = [examples.source.location(int(i)).line for i in self.examples.indices]
        self.labels = columns.labels_of_lines(self.lines)
        if self.config.reference not in POLICY_REFERENCES:
            precompute_with_reference_model(self.config, self.loss, tokenizer, {"": self.examples})

    def evaluate(
        self,
        adapter_path: str | Path | None = None,
        *,
        model: nn.Module | None = None,
        progress: ProgressCallback | None = None,
        on_status: Callable[[str], None] = lambda text: None,
    ) -> EvaluationResult:
        """Measure the model, with an adapter if one is given.

        Args:
            adapter_path: mlx-lm adapter folder to load onto the model.
            model: a model in memory instead of `config.model`.
            progress: is called with the number of examples done and of all examples, first before any is run.
            on_status: receives what is being done before.
        """
        config, examples = self.config, self.examples
        reference = examples.reference
        keep_weights_resident()
        is_from_files = model is None
        model = load_model(config.model).model if model is None else model
        check_vocabulary(model, examples.examples.encoder.tokenizer)
        if self.loss.needs_reward_head:
            network, base_tensors = self._reward_network(model, adapter_path, is_from_files), {}
        else:
            base_tensors = apply_adapter(model, adapter_path)
            network = Network.from_model(model, use_cache=is_from_files, on_progress=on_status)
        if config.reference == "none":
            reference.reference_policy = NoReference()
        elif config.reference in POLICY_REFERENCES:
            reference.clear()  # of another policy, whose base may differ; an equal base is in the disk cache
            reference.reference_policy = CachedReference(network, base_tensors, config.model)
        count, measurements = len(examples.indices), list[ExampleMeasurement]()
        if progress is not None:
            progress(0, count)
        evaluate_examples(
            MemoryModel(network),
            examples.examples,
            examples.indices,
            reference,
            self.loss,
            batch_size=config.batch_size,
            on_progress=None if progress is None else lambda done: progress(done, count),
            on_measurement=measurements.append,
        )
        reference.reference_policy = ReferencePolicy()  # releases the model before the next one is loaded
        measurements.sort(key=lambda measurement: measurement.index)
        table = np.stack([measurement.metrics for measurement in measurements])
        return EvaluationResult(examples.example_kind, table, self.lines, self.labels, metric_names(self.loss))

    def _reward_network(self, model: nn.Module, adapter_path: str | Path | None, is_from_files: bool) -> Network:
        if adapter_path is None and "reward_head" in model:
            return RewardNetwork.from_network(Network.from_model(model), model.reward_head.weight)
        if adapter_path is None:
            hint = "Name the folder of a run of `mlx-dpo train --loss reward`."
            raise UserError(f"the loss {self.config.loss!r} needs a reward model", field="adapter_path", hint=hint)
        return load_reward_network(model, str(adapter_path), use_cache=is_from_files)


def find_adapters(path: str | Path) -> list[Path]:
    """The adapter folders at a path: itself, or those directly in it, such as a run's checkpoints, by name."""
    folder = Path(path)
    inside = sorted(file.parent for file in folder.glob("*/adapter_config.json"))
    return [folder] if (folder / "adapter_config.json").exists() or not inside else inside
