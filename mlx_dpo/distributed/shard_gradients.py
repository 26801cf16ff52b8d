"""Gradients through a model that mlx-lm has shared out: it does so for generation, and loses some of them on the way.

Where a rank makes its heads of what all ranks have alike, the gradients of the ranks' heads have to be summed, and so
for what all ranks add up. mlx-lm's linear layers and mixtures do that; two of its attentions don't, and are mended
here. Whether all is well is then tried, so that a model that this module has never heard of is trained right or not at
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import sum_gradients

LATENT = "kv_a_proj_with_mqa"  # of DeepSeek's attention: what all heads' keys and values are made of
DIRECTIONS = 8  # that a gradient is tried along
MAX_RELATIVE_ERROR = (
    0.01  # of it, more than which is not rounding: it is 1e-6 where all is well, 0.05 and more where it is not
)


class ShardedRMSNorm(nn.Module):
    """MiniMax's norm over the heads of all ranks."""

    def __call__(self, x: mx.array) -> mx.array:
        wide = x.astype(mx.float32)
        squares = mx.distributed.all_sum(wide.square().sum(axis=-1, keepdims=True), group=self.group)
        mean = sum_gradients(self.group)(squares) / (x.shape[-1] * self.group.size())
        return (wide * mx.rsqrt(mean + self.eps) * self.weight).astype(x.dtype)


def fix_backward(model: nn.Module, group: mx.distributed.Group) -> None:
    """Have the layers that lose gradients keep them."""
    for module in model.modules():
        if type(module).__name__ == "ShardedRMSNorm":
            module.__class__ = ShardedRMSNorm
        elif LATENT in module and "embed_q" in module:
            module[LATENT].__class__ = _summed_backwards(type(module[LATENT]), group)


def _summed_backwards(kind: Any, group: mx.distributed.Group) -> type:
    """A kind of layer whose output goes into what each rank has a share of."""

    def call(self: nn.Module, x: mx.array) -> mx.array:
        return sum_gradients(group)(kind.__call__(self, x))

    return type(kind.__name__, (kind,), {"__call__": call})


def backward_relative_error(model: nn.Module) -> float:
    """How far slopes of a loss by the backward pass are from those that go forward, relatively.

    Along some directions of what comes out of the embedding, all in float32.
    """
    tokens = mx.array([[3, 5, 4, 6, 2, 7, 3, 1]])
    shapes: list[tuple[int, ...]] = []

    def loss(moved: mx.array) -> mx.array:
        with _moved_embeddings(moved, shapes), _derivatives_forward():
            logits = model(tokens[:, :-1]).astype(mx.float32)
        return nn.losses.cross_entropy(logits, tokens[:, 1:]).sum()

    loss(mx.zeros(()))  # for the shape
    still = mx.zeros(shapes[0])
    directions = mx.random.normal((DIRECTIONS, *still.shape), key=mx.random.key(0))
    gradient = mx.grad(loss)(still)
    backward = mx.array([(direction * gradient).sum().item() for direction in directions])
    forward = mx.array([mx.jvp(loss, [still], [direction])[1][0].item() for direction in directions])
    lost: Any = (mx.linalg.norm(backward - forward) / mx.linalg.norm(forward)).item()
    return lost


@contextmanager
def _moved_embeddings(moved: mx.array, shapes: list[tuple[int, ...]]) -> Iterator[None]:
    """Within, this is added to what the first embedding that is called gives, and its shape noted."""
    kinds: list[Any] = [nn.Embedding, nn.QuantizedEmbedding]
    plain = {kind: kind.__call__ for kind in kinds}
    calls: list[nn.Module] = []

    def call(module: nn.Module, ids: mx.array) -> mx.array:
        y = plain[type(module)](module, ids)
        calls.append(module)
        if len(calls) > 1:
            return y
        shapes.append(y.shape)
        return y.astype(mx.float32) + moved

    for kind in kinds:
        kind.__call__ = call
    try:
        yield
    finally:
        for kind in kinds:
            kind.__call__ = plain[kind]


@contextmanager
def _derivatives_forward() -> Iterator[None]:
    """Within, products that mlx has no forward derivatives of have them."""
    names = ("gather_mm", "gather_qmm", "conv1d")
    plain = {name: getattr(mx, name) for name in names}
    for name in names:
        setattr(mx, name, _linear(plain[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(mx, name, plain[name])


def _linear(product: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def call(x: mx.array, *others: Any, **settings: Any) -> mx.array:
        def of(x: mx.array) -> mx.array:
            return product(x, *others, **settings)

        custom: Any = mx.custom_function(lambda x: of(mx.stop_gradient(x)))
        custom.jvp(lambda x, tangent: of(tangent))
        custom.vjp(lambda x, gradient, y: mx.vjp(of, [x], [gradient])[1][0])
        return custom(x)

    return call
