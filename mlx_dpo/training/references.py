"""Connecting pairs with the reference policy a run asks for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError, Where
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.loading import load_model, load_tokenizer
from mlx_dpo.model.network import Network
from mlx_dpo.model.policy import Policy
from mlx_dpo.model.reference import all_known, no_reference, same_network
from mlx_dpo.training.evaluation import batches_of, windows
from mlx_dpo.training.pair_sets import PairSet, PairSets

OF_THE_POLICY = ("initial", "base", "none")


def score_by_other_model(config: TrainConfig, tokenizer: Any, sets: PairSets) -> None:
    """Compute every pair's log-probs by the model `config.reference`, and let it go before the policy is loaded.

    Raises `UserError` where its tokens are not the policy's.
    """
    if load_tokenizer(config.reference).get_vocab() != tokenizer.get_vocab():
        hint = "A reference has to see the same tokens: a model of the same family, a fused or a base one."
        where = Where(config.reference)
        raise UserError("the reference model has another vocabulary", where=where, field="reference", hint=hint)
    other = Network.of(load_model(config.reference).model)
    budget = Budget(other)
    compute = same_network(other, {}, config.reference)
    for one in sets.values():
        one.reference.compute = compute
        _fill(one, config.batch_size, budget)
    mx.clear_cache()


def connect_reference(config: TrainConfig, policy: Policy, budget: Budget, sets: PairSets) -> None:
    """Have the reference's log-probs come from the policy's own network: under its initial tensors, or its base's.

    For LoRA and DoRA they are computed as pairs come by. Full fine-tuning keeps no second copy of its weights, so
    there all are computed now, before the first update. Raises `UserError`.
    """
    if config.reference not in OF_THE_POLICY:
        return  # `score_by_other_model` has done it
    full = policy.spec.fine_tune_type == "full"
    if full and config.reference == "base" and config.init_adapter:
        hint = "Name the base model's folder: --reference PATH."
        raise UserError("a full fine-tune's base is not in memory", field="reference", hint=hint)
    tensors = policy.base if config.reference == "base" else policy.initial
    compute = no_reference if config.reference == "none" else same_network(policy.network, tensors, config.model)
    for one in sets.values():
        one.reference.compute = compute
        if full:
            _fill(one, config.batch_size, budget)


def _fill(one: PairSet, batch_size: int, budget: Budget) -> None:
    """Compute what is not known yet, and let go of the model that does it."""
    missing = one.indices[np.isnan(one.reference.table[one.indices]).any(axis=1)]
    for indices, micros in batches_of(one.pairs, windows(missing, batch_size), budget):
        for micro in micros:
            one.reference.of(indices[list(micro.pairs)], micro)
    one.reference.compute = all_known
