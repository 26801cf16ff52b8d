"""Connecting examples with the reference policy a run asks for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.example_sets import ExampleSet, ExampleSets
from mlx_dpo.evaluation.row_batches import index_batches
from mlx_dpo.evaluation.scored_batch import optimizer_batches
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import Policy
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, ReferencePolicy, SharedNetworkReference

POLICY_REFERENCES = ("initial", "base", "none")


def precompute_with_reference_model(
    config: TrainConfig,
    loss: WeightedLoss,
    tokenizer: Any,
    example_sets: ExampleSets,
    communicator: Communicator = SINGLE_PROCESS,
) -> None:
    """Compute every pair's log-probs by the model `config.reference`, and let it go before the policy is loaded.

    Raises `UserError` where its tokens are not the policy's.
    """
    policy = load_reference_model(config, tokenizer)
    budget = MemoryModel(policy.network)
    for one in example_sets.values():
        one.reference.reference_policy = policy
        _fill(one, loss, config.batch_size, budget, communicator)
    mx.clear_cache()


def load_reference_model(config: TrainConfig, tokenizer: Any) -> CachedReference:
    """The model `config.reference`, loaded. Raises `UserError` where its tokens are not the policy's."""
    if load_tokenizer(config.reference).get_vocab() != tokenizer.get_vocab():
        hint = "A reference has to see the same tokens: a model of the same family, a fused or a base one."
        where = Where(config.reference)
        raise UserError("the reference model has another vocabulary", where=where, field="reference", hint=hint)
    return CachedReference(Network.from_model(load_model(config.reference).model), {}, config.reference)


def attach_reference(
    config: TrainConfig,
    loss: WeightedLoss,
    policy: Policy,
    budget: MemoryModel,
    example_sets: ExampleSets,
    communicator: Communicator,
) -> None:
    """Have the reference's log-probs come from the policy's own network: under its initial tensors, or its base's.

    For LoRA and DoRA they are computed as pairs come by. Full fine-tuning keeps no second copy of its weights, so
    there all are computed now, before the first update. Raises `UserError`.
    """
    if config.reference not in POLICY_REFERENCES:
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
    for one in example_sets.values():
        one.reference.reference_policy = reference
        if full:
            _fill(one, loss, config.batch_size, budget, communicator)


def _reference(config: TrainConfig, policy: Policy) -> ReferencePolicy:
    if config.reference == "none":
        return NoReference()
    tensors = policy.base_tensors if config.reference == "base" else policy.initial_tensors
    if config.reference_sync_steps:
        return SharedNetworkReference(policy.network, tensors)
    known_as = policy.fingerprint if tensors is policy.initial_tensors else None
    return CachedReference(policy.network, tensors, config.model, known_as)


def _fill(
    one: ExampleSet, loss: WeightedLoss, batch_size: int, budget: MemoryModel, communicator: Communicator
) -> None:
    """Compute what is not known yet, ranks taking batches in turn, and let go of the model that does it."""
    table = one.reference.table
    missing = one.indices[np.isnan(table[one.indices]).any(axis=1)]
    for batch in optimizer_batches(
        one.examples, communicator.round_robin(list(index_batches(missing, batch_size))), budget, loss
    ):
        for micro in batch.micro_batches:
            one.reference.lookup(batch.example_indices(micro), micro)
        told, _ = communicator.gather_and_concatenate(
            {"indices": batch.indices_in_order, "reference": table[batch.indices_in_order]}
        )
        one.reference.fill(told["indices"], told["reference"])
    one.reference.reference_policy = ReferencePolicy()
