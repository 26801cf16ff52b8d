"""`evaluate`: how a policy does on a file of pairs, against a reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.chat import Encoder
from mlx_dpo.data.columns import renaming
from mlx_dpo.data.pairs import EncodedPairs
from mlx_dpo.data.records import ExamplesOf
from mlx_dpo.data.sources import PairFile, find_data
from mlx_dpo.errors import UserError
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.device import keep_weights_resident
from mlx_dpo.model.loading import Tensors, base_tensors, load_adapter, load_model, load_tokenizer
from mlx_dpo.model.network import Network
from mlx_dpo.model.reference import CachedReference, NoReference
from mlx_dpo.training.evaluation import evaluate_examples
from mlx_dpo.training.pair_sets import PairSet, Rows, pairs_in_memory, reader_of
from mlx_dpo.training.references import score_by_other_model
from mlx_dpo.training.run import for_examples, make_loss, with_loss


def evaluate(
    config: TrainConfig,
    *,
    adapter_path: str | Path | None = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    rows: Rows | None = None,
    progress: Callable[[int, int], None] | None = None,
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
    loss = make_loss(config)
    config = with_loss(config, loss)
    tokenizer = tokenizer or load_tokenizer(config.model)
    encoder = Encoder(tokenizer, max_length=config.max_length, overlong=config.overlong, raw=config.raw)
    read = renaming(config.columns, reader_of(loss))
    source = pairs_in_memory(rows, "rows", read) if rows is not None else _open(config.data, read)
    pairs = EncodedPairs(source, encoder)
    one = PairSet.of(pairs, pairs.usable())
    config = for_examples(config, loss, one)
    of_the_policy = config.reference in ("initial", "base")
    if not of_the_policy and config.reference != "none":
        score_by_other_model(config, loss, tokenizer, {"": one})

    keep_weights_resident()
    model = load_model(config.model).model if model is None else model
    base = _base(model, adapter_path)
    network = Network.of(model)
    budget = Budget(network)
    if of_the_policy:
        one.reference.policy = CachedReference(network, base, config.model)
    elif config.reference == "none":
        one.reference.policy = NoReference()
    count = len(one.indices)
    metrics = evaluate_examples(
        budget,
        pairs,
        one.indices,
        one.reference,
        loss,
        batch_size=config.batch_size,
        progress=None if progress is None else lambda done: progress(done, count),
    )
    return {one.what: count, **metrics}


def _open(data: str, read: ExamplesOf) -> PairFile:
    """A file's pairs; of a folder, the held-out ones where it has some."""
    if not data:
        raise UserError("no preference pairs given", field="data", hint="Name a file or folder with --data.")
    file, held_out = find_data(data, None)
    return PairFile.open(held_out or file, read=read)


def _base(model: nn.Module, adapter_path: str | Path | None) -> Tensors:
    """Put the adapter on, if any; returns the tensors that stand for the model without it."""
    return base_tensors(model) if adapter_path is None else load_adapter(model, adapter_path)[1]
