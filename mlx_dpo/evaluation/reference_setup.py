"""The reference policy of a run: another model, or the policy's own network under other tensors."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.adapters.adapter_settings import fine_tune_type
from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.example_sets import ExampleSet, ExampleSets
from mlx_dpo.evaluation.optimizer_batch import optimizer_batches
from mlx_dpo.evaluation.row_batches import index_batches
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import Policy
from mlx_dpo.forward.vocabulary import check_vocabulary
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.reference.reference_policy import CachedReference, NoReference, ReferencePolicy, SharedNetworkReference

POLICY_REFERENCES = ("initial", "base", "none")  # the policy's own network, or no reference; everything else is a model


def require_reference_in_memory(config: TrainConfig, loss: WeightedLoss) -> None:
    """Check, before anything is loaded, that the reference is there in every step that needs it.

    Full fine-tuning keeps no second copy of the weights, and a reference model is freed once its log-probs are
    computed.

    Args:
        config: the run's settings.
        loss: the loss of the run.

    Raises:
        UserError: the reference is not in memory, and is needed there.
    """
    is_full = fine_tune_type(config) == "full"
    if is_full and config.reference_sync_steps:
        message = "a moving reference would be a second copy of all weights"
        raise UserError(message, field="reference_sync_steps", hint="Use lora or dora.")
    if is_full and config.reference == "base" and config.init_adapter:
        hint = "Name the base model's folder: --reference PATH."
        raise UserError("a full fine-tune's base is not in memory", field="reference", hint=hint)
    runs_reference = loss.needs_token_kls or loss.needs_kl_scores
    if runs_reference and config.reference == "none":
        message = f"the loss {config.loss!r} needs a reference, to which it compares the policy token by token"
        raise UserError(message, field="reference", hint="Use --reference initial or base.")
    if not (loss.needs_kl or runs_reference) or config.reference == "none":
        return
    if config.reference not in POLICY_REFERENCES:
        message = f"the loss {config.loss!r} needs the reference in every step, and another model is not kept in memory"
        raise UserError(message, field="reference", hint="Use --reference initial or base, with lora or dora.")
    if is_full:
        message = f"the loss {config.loss!r} needs the reference in every step, which full fine-tuning does not keep"
        raise UserError(message, field="fine_tune_type", hint="Use --fine-tune-type lora or dora, or another loss.")


def precompute_with_reference_model(
    config: TrainConfig,
    loss: WeightedLoss,
    tokenizer: Any,
    example_sets: ExampleSets,
    communicator: Communicator = SINGLE_PROCESS,
) -> None:
    """Compute all reference log-probs by the model `config.reference`, and free it before the policy is loaded.

    Args:
        config: the run's settings.
        loss: the loss that the log-probs are for.
        tokenizer: the policy's.
        example_sets: examples whose reference tables are filled.
        communicator: ranks that share the work.

    Raises:
        UserError: the model has another vocabulary than the policy.
    """
    reference = load_reference_model(config, tokenizer)
    memory_model = MemoryModel(reference.network)
    for example_set in example_sets.values():
        example_set.reference.reference_policy = reference
        _fill_table(example_set, loss, config.batch_size, memory_model, communicator)
    mx.clear_cache()


def load_reference_model(config: TrainConfig, tokenizer: Any) -> CachedReference:
    """Load the model `config.reference`.

    Raises:
        UserError: it has another vocabulary than the policy's `tokenizer`, or too small an embedding for it.
    """
    if load_tokenizer(config.reference).get_vocab() != tokenizer.get_vocab():
        hint = "A reference needs the policy's tokens: use a model of the same family, a fused or a base one."
        where = Where(config.reference)
        raise UserError("the reference model has another vocabulary", where=where, field="reference", hint=hint)
    model = load_model(config.reference).model
    check_vocabulary(model, tokenizer)
    return CachedReference(Network.from_model(model, use_cache=True), {}, config.reference)


def attach_reference(
    config: TrainConfig,
    loss: WeightedLoss,
    policy: Policy,
    memory_model: MemoryModel,
    example_sets: ExampleSets,
    communicator: Communicator,
) -> None:
    """Let reference log-probs come from the policy's own network, under its initial or its base's tensors.

    With LoRA and DoRA they are computed when an example is first seen. Full fine-tuning keeps no second copy of the
    weights, so all are computed here, before the first update. Nothing is done where the reference is another model.

    Args:
        config: the run's settings.
        loss: the loss that the log-probs are for.
        policy: what is trained.
        memory_model: decides which micro-batches fit.
        example_sets: examples whose reference is attached.
        communicator: ranks that share the work.
    """
    if config.reference not in POLICY_REFERENCES:
        return
    is_full = policy.spec.fine_tune_type == "full"
    reference = _policy_reference(config, policy)
    for example_set in example_sets.values():
        example_set.reference.reference_policy = reference
        if is_full and config.reference != "none":
            _fill_table(example_set, loss, config.batch_size, memory_model, communicator)


def _policy_reference(config: TrainConfig, policy: Policy) -> ReferencePolicy:
    if config.reference == "none":
        return NoReference()
    tensors = policy.base_tensors if config.reference == "base" else policy.initial_tensors
    if config.reference_sync_steps or config.on_policy:  # what is sampled is scored only once
        return SharedNetworkReference(policy.network, tensors)
    known_fingerprint = policy.fingerprint if tensors is policy.initial_tensors else None
    return CachedReference(policy.network, tensors, config.model, known_fingerprint)


def _fill_table(
    example_set: ExampleSet, loss: WeightedLoss, batch_size: int, memory_model: MemoryModel, communicator: Communicator
) -> None:
    """Compute the log-probs that are missing, ranks taking batches in turn, and release the model."""
    indices, reference = example_set.indices, example_set.reference
    missing = indices[np.isnan(reference.table[indices]).any(axis=1)]
    order = communicator.round_robin(list(index_batches(missing, batch_size)))
    for batch in optimizer_batches(example_set.examples, order, memory_model, loss):
        for micro in batch.micro_batches:
            reference.lookup(batch.example_indices(micro), micro)
        computed = {"indices": batch.indices_in_order, "logps": reference.table[batch.indices_in_order]}
        gathered, _ = communicator.gather_and_concatenate(computed)
        reference.fill(gathered["indices"], gathered["logps"])
    reference.reference_policy = ReferencePolicy()
