"""Connecting examples with the reference policy a run asks for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.communicator import ALONE, Group
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.example_sets import PairSet, PairSets
from mlx_dpo.evaluation.measuring import windows
from mlx_dpo.evaluation.scored_batch import batches_of
from mlx_dpo.forward.memory_model import Budget
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import Policy
from mlx_dpo.objectives import Loss
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, Reference, SameNetwork

OF_THE_POLICY = ("initial", "base", "none")


def score_by_other_model(config: TrainConfig, loss: Loss, tokenizer: Any, sets: PairSets, group: Group = ALONE) -> None:
    """Compute every pair's log-probs by the model `config.reference`, and let it go before the policy is loaded.

    Raises `UserError` where its tokens are not the policy's.
    """
    policy = other_reference(config, tokenizer)
    budget = Budget(policy.network)
    for one in sets.values():
        one.reference.policy = policy
        _fill(one, loss, config.batch_size, budget, group)
    mx.clear_cache()


def other_reference(config: TrainConfig, tokenizer: Any) -> CachedReference:
    """The model `config.reference`, loaded. Raises `UserError` where its tokens are not the policy's."""
    if load_tokenizer(config.reference).get_vocab() != tokenizer.get_vocab():
        hint = "A reference has to see the same tokens: a model of the same family, a fused or a base one."
        where = Where(config.reference)
        raise UserError("the reference model has another vocabulary", where=where, field="reference", hint=hint)
    return CachedReference(Network.of(load_model(config.reference).model), {}, config.reference)


def connect_reference(
    config: TrainConfig, loss: Loss, policy: Policy, budget: Budget, sets: PairSets, group: Group
) -> None:
    """Have the reference's log-probs come from the policy's own network: under its initial tensors, or its base's.

    For LoRA and DoRA they are computed as pairs come by. Full fine-tuning keeps no second copy of its weights, so
    there all are computed now, before the first update. Raises `UserError`.
    """
    if config.reference not in OF_THE_POLICY:
        return  # `score_by_other_model` has done it
    full = policy.spec.fine_tune_type == "full"
    if full and config.reference_sync_steps:
        raise UserError(
            "a moving reference would be a second copy of all weights",
            field="reference_sync_steps",
            hint="Use lora or dora.",
        )
    if full and config.reference == "base" and config.init_adapter:
        hint = "Name the base model's folder: --reference PATH."
        raise UserError("a full fine-tune's base is not in memory", field="reference", hint=hint)
    reference = _reference(config, policy)
    for one in sets.values():
        one.reference.policy = reference
        if full:
            _fill(one, loss, config.batch_size, budget, group)


def _reference(config: TrainConfig, policy: Policy) -> Reference:
    if config.reference == "none":
        return NoReference()
    tensors = policy.base if config.reference == "base" else policy.initial
    if config.reference_sync_steps:
        return SameNetwork(policy.network, tensors)
    known_as = policy.fingerprint if tensors is policy.initial else None
    return CachedReference(policy.network, tensors, config.model, known_as)


def _fill(one: PairSet, loss: Loss, batch_size: int, budget: Budget, group: Group) -> None:
    """Compute what is not known yet, ranks taking batches in turn, and let go of the model that does it."""
    table = one.reference.table
    missing = one.indices[np.isnan(table[one.indices]).any(axis=1)]
    for batch in batches_of(one.pairs, group.turns(list(windows(missing, batch_size))), budget, loss):
        for micro in batch.micros:
            one.reference.of(batch.of(micro), micro)
        told, _ = group.pooled({"indices": batch.in_order, "reference": table[batch.in_order]})
        one.reference.learn(told["indices"], told["reference"])
    one.reference.policy = Reference()
