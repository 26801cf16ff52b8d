"""`evaluate`: how policies do on a file of pairs, against a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.adapter_folder import put_adapter
from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat_encoding import Encoder
from mlx_dpo.data.column_mapping import renaming
from mlx_dpo.data.encoded_examples import EncodedPairs
from mlx_dpo.evaluation.example_sets import PairSet, Rows, open_measured, reader_of
from mlx_dpo.evaluation.measuring import Measured, evaluate_examples
from mlx_dpo.evaluation.metric_summary import Columns, MeasuredSet
from mlx_dpo.evaluation.reference_setup import OF_THE_POLICY, score_by_other_model
from mlx_dpo.forward.device import keep_weights_resident
from mlx_dpo.forward.memory_model import Budget
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.objectives import Loss
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, Reference
from mlx_dpo.training.run import for_examples, make_loss, with_loss

Progress = Callable[[int, int], None]


def evaluate(
    config: TrainConfig,
    *,
    adapter_path: str | Path | None = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    progress: Progress | None = None,
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
    evaluation = Evaluation(config, tokenizer=tokenizer, rows=rows)
    measured = evaluation.measure(adapter_path, model=model, progress=progress)
    return {measured.what: len(measured.table), **measured.metrics}


class Evaluation:
    """Examples opened once, to measure any number of policies on, one after the other; see `evaluate`."""

    def __init__(
        self, config: TrainConfig, *, by: Sequence[str] = (), tokenizer: Any = None, rows: Rows | None = None
    ) -> None:
        """by: columns of the rows to sum up by."""
        self.loss: Loss = make_loss(config)
        config = with_loss(config, self.loss)
        tokenizer = tokenizer or load_tokenizer(config.model)
        encoder = Encoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
        columns = Columns(renaming(config.columns, reader_of(self.loss)), by)
        pairs = EncodedPairs(open_measured(config, rows, columns), encoder)
        self.examples = PairSet.of(pairs, pairs.usable())
        self.config = for_examples(config, self.loss, self.examples)
        self.lines = [pairs.source.where(int(i)).line for i in self.examples.indices]
        self.labels = columns.of(self.lines)
        if self.config.reference not in OF_THE_POLICY:
            score_by_other_model(self.config, self.loss, tokenizer, {"": self.examples})

    def measure(
        self,
        adapter_path: str | Path | None = None,
        *,
        model: nn.Module | None = None,
        progress: Progress | None = None,
    ) -> MeasuredSet:
        """Metrics of every example under the model, with an adapter on or without."""
        config, one = self.config, self.examples
        keep_weights_resident()
        model = load_model(config.model).model if model is None else model
        base = put_adapter(model, adapter_path)
        network = Network.of(model)
        if config.reference == "none":
            one.reference.policy = NoReference()
        elif config.reference in OF_THE_POLICY:
            one.reference.forget()  # it was another policy's base; one that is the same is found in the cache
            one.reference.policy = CachedReference(network, base, config.model)
        count, found = len(one.indices), list[Measured]()
        evaluate_examples(
            Budget(network),
            one.pairs,
            one.indices,
            one.reference,
            self.loss,
            batch_size=config.batch_size,
            progress=None if progress is None else lambda done: progress(done, count),
            each=found.append,
        )
        one.reference.policy = Reference()  # it is not kept in memory beside the next one
        in_order = sorted(found, key=lambda each: each.index)
        return MeasuredSet(one.what, np.stack([each.metrics for each in in_order]), self.lines, self.labels)


def adapters_in(path: str | Path) -> list[Path]:
    """An adapter folder; or all adapter folders in a folder, as of a run's checkpoints, by name."""
    folder = Path(path)
    inside = sorted(file.parent for file in folder.glob("*/adapter_config.json"))
    return [folder] if (folder / "adapter_config.json").exists() or not inside else inside
