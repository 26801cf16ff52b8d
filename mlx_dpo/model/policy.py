"""The one thing the rest of the house sees of a model: log-probabilities of a micro-batch's completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.data.batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.model.loading import AdapterSpec, Tensors, attach, load_adapter, trainable
from mlx_dpo.model.token_logps import token_logps

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Policy:
    """A model made ready to train.

    Attributes:
        spec: what is trained, with layers and keys resolved.
        initial, base: the trained tensors as the run starts, and those that stand for the model without an adapter;
            empty for full fine-tuning, where they would be a second copy of the weights.
        max_tokens: padded tokens that a micro-batch may have within the memory limit.
    """

    model: nn.Module
    spec: AdapterSpec
    initial: Tensors
    base: Tensors
    max_tokens: int


def make_policy(
    model: nn.Module, spec: AdapterSpec, init_adapter: str | None, *, memory_limit: int, grad_checkpoint: bool
) -> Policy:
    """Attach what `spec` says, or an adapter folder, which has its own spec. Raises `UserError`."""
    if any("lora_a" in m for _, m in model.named_modules()):
        raise UserError("the model has adapters already", hint="Load it afresh, or start from them by init_adapter.")
    if init_adapter is None:
        spec = attach(model, spec)
        base = trainable(model)
    else:
        spec, base = load_adapter(model, init_adapter)
    initial = trainable(model)
    if spec.fine_tune_type == "full":
        initial = base = {}
    max_tokens = tokens_in_memory(model, vocabulary_size(model), memory_limit, grad_checkpoint)
    return Policy(model, spec, initial, base, max_tokens)


def completion_logps(model: nn.Module, batch: MicroBatch) -> mx.array:
    """log pi of every completion token given what stands before it, end of turn included; 0 at all other positions.

    Args:
        model: the policy, in whatever state its tensors are.
        batch: [sequences, tokens], padded on the right, which no causal model sees.

    Returns:
        [sequences, tokens after `batch.first_target`], float32, nats; first all chosen, then all rejected.
    """
    logits = model(batch.inputs)[:, batch.first_target :]
    logps = token_logps(logits, batch.targets[:, batch.first_target :])
    # where, not a product: a padded position's log-prob may be infinite, and 0 * inf is not a number
    return mx.where(batch.trained[:, batch.first_target :], logps, 0)


def sequence_logps(model: nn.Module, batch: MicroBatch) -> mx.array:
    """log pi(completion | prompt), summed in float32; [sequences], for training."""
    return completion_logps(model, batch).sum(axis=1)


def measured_logps(model: nn.Module, batch: MicroBatch) -> np.ndarray:
    """log pi(completion | prompt), summed in float64; [sequences], for measuring.

    Rewards are small differences of large sums: at 300 nats the step between float32 numbers is 3e-5.
    """
    return np.array(completion_logps(model, batch)).astype(np.float64).sum(axis=1)


@contextmanager
def policy_as(model: nn.Module, tensors: Mapping[str, mx.array]) -> Iterator[None]:
    """Within, these tensors of the model are other ones; so one model in memory is policy and reference both."""
    current = {k: v for k, v in tree_flatten(model.parameters()) if k in tensors}
    model.update(tree_unflatten(list(tensors.items())))
    try:
        yield
    finally:
        model.update(tree_unflatten(list(current.items())))


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Within, nothing is dropped; all else computes as in training, so that policy and reference agree to the bit."""
    dropouts = [m for _, m in model.named_modules() if isinstance(m, (nn.Dropout, nn.Dropout2d, nn.Dropout3d))]
    modes = [m.training for m in dropouts]
    was_training = model.training
    model.train()
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        model.train(was_training)
        for module, mode in zip(dropouts, modes, strict=True):
            module.train(mode)


def tokens_in_memory(model: nn.Module, vocabulary: int, limit: int, grad_checkpoint: bool) -> int:
    """How many padded tokens a micro-batch may have to stay under `limit` bytes: an estimate, from the layers' widths.

    A token's backward pass keeps the inputs and outputs of every layer (of one block at a time under checkpointing,
    and each block's input) and three copies of its logits.
    """
    held = sum(v.nbytes for _, v in tree_flatten(model.parameters()))
    widths = [sum(_width(m) for _, m in layer.named_modules()) for layer in model.layers]
    kept = (max(widths) + len(widths) * min(widths) // 8) if grad_checkpoint else sum(widths)
    per_token = FLOAT * (3 * vocabulary + 3 * kept)
    return max(1, int(limit - held) // per_token)


def vocabulary_size(model: nn.Module) -> int:
    """Logits a token has; nothing is computed to find out."""
    return model(mx.zeros((1, 1), mx.int32)).shape[-1]


def _width(module: nn.Module) -> int:
    """Floats a token leaves behind in a linear layer: its output, and about as much input."""
    weight = module.get("weight")
    is_linear = (
        weight is not None and weight.ndim >= 2 and not isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
    )
    return 2 * weight.shape[-2] if is_linear else 0
