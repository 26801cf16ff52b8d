"""The one thing the rest of the house sees of a model: log-probabilities of a micro-batch's completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_dpo.data.batches import MicroBatch
from mlx_dpo.model.loading import trainable
from mlx_dpo.model.token_logps import token_logps

FLOAT = 4  # bytes


def sequence_logps(model: nn.Module, batch: MicroBatch) -> mx.array:
    """log pi(completion | prompt) of every sequence, summed in float32 over completion tokens, end of turn included.

    Args:
        model: the policy, in whatever state its tensors are.
        batch: [sequences, tokens], padded on the right, which no causal model sees.

    Returns:
        [sequences], float32, nats: first all chosen, then all rejected.
    """
    logits = model(batch.inputs)[:, batch.first_target :]
    logps = token_logps(logits, batch.targets[:, batch.first_target :])
    # where, not a product: a padded position's log-prob may be infinite, and 0 * inf is not a number
    return mx.where(batch.trained[:, batch.first_target :], logps, 0).sum(axis=1)


@contextmanager
def policy_as(model: nn.Module, tensors: Mapping[str, mx.array]) -> Iterator[None]:
    """Within, the model's trained tensors are these; this is how one model in memory is policy and reference both."""
    current = trainable(model)
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
    held = sum(v.nbytes for v in _arrays(model))
    widths = [sum(_width(m) for _, m in layer.named_modules()) for layer in model.layers]
    kept = (max(widths) + len(widths) * min(widths) // 8) if grad_checkpoint else sum(widths)
    per_token = FLOAT * (3 * vocabulary + 3 * kept)
    return max(1, int(limit - held) // per_token)


def _arrays(model: nn.Module) -> Iterator[mx.array]:
    from mlx.utils import tree_flatten

    yield from (v for _, v in tree_flatten(model.parameters()))


def _width(module: nn.Module) -> int:
    """Floats a token leaves behind in a linear layer: its output, and about as much input."""
    weight = module.get("weight")
    is_linear = weight is not None and weight.ndim >= 2 and not isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
    return 2 * weight.shape[-2] if is_linear else 0
