"""Correct gradients through a model that mlx-lm has sharded: it shards for generation, and loses some gradients.

Where each rank computes its heads from a replicated tensor, that tensor's gradient is the sum over ranks. mlx-lm's
linear layers and mixtures of experts do that all-reduce; two of its attentions don't, and are fixed here. A numerical
check follows, so that a model this module has never heard of is trained correctly or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import sum_gradients

LATENT_PROJECTION = "kv_a_proj_with_mqa"  # of DeepSeek's attention: all heads' keys and values are made of its output
NUM_DIRECTIONS = 8  # along which the gradient is checked
MAX_RELATIVE_ERROR = 0.01  # rounding alone is 1e-6, a lost gradient 0.05 and more


class ShardedRMSNorm(nn.Module):
    """MiniMax's RMS norm over the heads of all ranks."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., this rank's heads], normalised by the mean square over all heads."""
        x32 = x.astype(mx.float32)
        squares = mx.distributed.all_sum(x32.square().sum(axis=-1, keepdims=True), group=self.group)
        mean = sum_gradients(self.group)(squares) / (x.shape[-1] * self.group.size())
        return (x32 * mx.rsqrt(mean + self.eps) * self.weight).astype(x.dtype)


def fix_backward(model: nn.Module, group: mx.distributed.Group) -> None:
    """Replace the classes of layers that lose gradients by ones that don't."""
    for module in model.modules():
        if type(module).__name__ == "ShardedRMSNorm":
            module.__class__ = ShardedRMSNorm
        elif LATENT_PROJECTION in module and "embed_q" in module:
            module[LATENT_PROJECTION].__class__ = _with_summed_gradient(type(module[LATENT_PROJECTION]), group)


def _with_summed_gradient(layer_type: Any, group: mx.distributed.Group) -> type:
    """A subclass whose output's gradient is summed over ranks."""

    def call(self: nn.Module, x: mx.array) -> mx.array:
        return sum_gradients(group)(layer_type.__call__(self, x))

    return type(layer_type.__name__, (layer_type,), {"__call__": call})


def backward_relative_error(model: nn.Module) -> float:
    """Compare reverse-mode with forward-mode derivatives, in float32.

    Both are of a language modelling loss, along some random directions of the embedding's output.

    Returns:
        The norm of the difference over the norm of the forward-mode derivatives.
    """
    tokens = mx.array([[3, 5, 4, 6, 2, 7, 3, 1]])
    shapes: list[tuple[int, ...]] = []

    def loss(offset: mx.array) -> mx.array:
        with _embedding_offset(offset, shapes), _forward_mode_products():
            logits = model(tokens[:, :-1]).astype(mx.float32)
        return nn.losses.cross_entropy(logits, tokens[:, 1:]).sum()

    loss(mx.zeros(()))  # for the shape
    zero = mx.zeros(shapes[0])
    directions = mx.random.normal((NUM_DIRECTIONS, *zero.shape), key=mx.random.key(0))
    gradient = mx.grad(loss)(zero)
    backward = mx.array([(direction * gradient).sum().item() for direction in directions])
    forward = mx.array([mx.jvp(loss, [zero], [direction])[1][0].item() for direction in directions])
    error: Any = (mx.linalg.norm(backward - forward) / mx.linalg.norm(forward)).item()
    return error


@contextmanager
def _embedding_offset(offset: mx.array, shapes: list[tuple[int, ...]]) -> Iterator[None]:
    """Add an offset to the output of the first embedding that is called, and append that output's shape to `shapes`."""
    embedding_types: list[Any] = [nn.Embedding, nn.QuantizedEmbedding]
    originals = {embedding: embedding.__call__ for embedding in embedding_types}
    calls: list[nn.Module] = []

    def call(module: nn.Module, ids: mx.array) -> mx.array:
        y = originals[type(module)](module, ids)
        calls.append(module)
        if len(calls) > 1:
            return y
        shapes.append(y.shape)
        return y.astype(mx.float32) + offset

    for embedding in embedding_types:
        embedding.__call__ = call
    try:
        yield
    finally:
        for embedding, original in originals.items():
            embedding.__call__ = original


@contextmanager
def _forward_mode_products() -> Iterator[None]:
    """Within this context, the products that mlx has no forward-mode derivative for have one."""
    originals = {name: getattr(mx, name) for name in ("gather_mm", "gather_qmm", "conv1d")}
    for name, product in originals.items():
        setattr(mx, name, _with_jvp(product))
    try:
        yield
    finally:
        for name, product in originals.items():
            setattr(mx, name, product)


def _with_jvp(product: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """The same function, with a forward-mode derivative by its first argument, in which it is linear."""

    def call(x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        def linear(x: mx.array) -> mx.array:
            return product(x, *args, **kwargs)

        function: Any = mx.custom_function(lambda x: linear(mx.stop_gradient(x)))
        function.jvp(lambda x, tangent: linear(tangent))
        function.vjp(lambda x, gradient, y: mx.vjp(linear, [x], [gradient])[1][0])
        return function(x)

    return call
