"""`evaluate`: how policies do on a file of pairs, against a reference."""

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
from mlx_dpo.evaluation.example_sets import ExampleSet, Rows, example_reader, open_evaluation_source
from mlx_dpo.evaluation.measuring import ExampleMeasurement, evaluate_examples
from mlx_dpo.evaluation.metric_summary import ColumnLabels, EvaluationResult
from mlx_dpo.evaluation.reference_setup import POLICY_REFERENCES, precompute_with_reference_model
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, ReferencePolicy
from mlx_dpo.training.run import loss_from_config, resolve_for_examples, resolve_loss_settings

ProgressCallback = Callable[[int, int], None]


def evaluate(
    config: TrainConfig,
    *,
    adapter_path: str | Path | None = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, float]:
    """Mean metrics, under TRL's names, over all of a file's rows, and `pairs`, or `completions`, their number.

    Args:
        config: its model, data, length, reference ("base", the model without the adapter; "none"; or a model folder),
            objective and batch size are used.
        adapter_path: an mlx-lm adapter folder to put on the model.
        model, tokenizer: a model in memory instead of `config.model`; adapters it has are the policy.
        rows: preference rows in memory instead of `config.data`.
        progress: hears (pairs done, pairs in all).

    Raises:
        UserError: something given is wrong.
    """
    evaluation = Evaluator(config, tokenizer=tokenizer, rows=rows)
    measured = evaluation.evaluate(adapter_path, model=model, progress=progress)
    return {measured.unit: len(measured.table), **measured.metrics}


class Evaluator:
    """Examples opened once, to measure any number of policies on, one after the other; see `evaluate`."""

    def __init__(
        self, config: TrainConfig, *, by: Sequence[str] = (), tokenizer: Any = None, rows: Rows | None = None
    ) -> None:
        """by: columns of the rows to sum up by."""
        self.loss: WeightedLoss = loss_from_config(config)
        config = resolve_loss_settings(config, self.loss)
        tokenizer = tokenizer or load_tokenizer(config.model)
        encoder = ExampleEncoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
        columns = ColumnLabels(with_renamed_columns(config.columns, example_reader(self.loss)), by)
        pairs = EncodedExamples(open_evaluation_source(config, rows, columns), encoder)
        self.examples = ExampleSet.from_indices(pairs, pairs.usable_indices())
        self.config = resolve_for_examples(config, self.loss, self.examples)
        self.lines = [pairs.source.location(int(i)).line for i in self.examples.indices]
        self.labels = columns.labels_of_lines(self.lines)
        if self.config.reference not in POLICY_REFERENCES:
            precompute_with_reference_model(self.config, self.loss, tokenizer, {"": self.examples})

    def evaluate(
        self,
        adapter_path: str | Path | None = None,
        *,
        model: nn.Module | None = None,
        progress: ProgressCallback | None = None,
    ) -> EvaluationResult:
        """Metrics of every example under the model, with an adapter on or without."""
        config, one = self.config, self.examples
        keep_weights_resident()
        model = load_model(config.model).model if model is None else model
        base = apply_adapter(model, adapter_path)
        network = Network.from_model(model)
        if config.reference == "none":
            one.reference.reference_policy = NoReference()
        elif config.reference in POLICY_REFERENCES:
            one.reference.clear()  # it was another policy's base; one that is the same is found in the cache
            one.reference.reference_policy = CachedReference(network, base, config.model)
        count, found = len(one.indices), list[ExampleMeasurement]()
        evaluate_examples(
            MemoryModel(network),
            one.examples,
            one.indices,
            one.reference,
            self.loss,
            batch_size=config.batch_size,
            on_progress=None if progress is None else lambda done: progress(done, count),
            on_measurement=found.append,
        )
        one.reference.reference_policy = ReferencePolicy()  # it is not kept in memory beside the next one
        in_order = sorted(found, key=lambda each: each.index)
        return EvaluationResult(
            one.example_kind, np.stack([each.metrics for each in in_order]), self.lines, self.labels
        )


def find_adapters(path: str | Path) -> list[Path]:
    """An adapter folder; or all adapter folders in a folder, as of a run's checkpoints, by name."""
    folder = Path(path)
    inside = sorted(file.parent for file in folder.glob("*/adapter_config.json"))
    return [folder] if (folder / "adapter_config.json").exists() or not inside else inside
