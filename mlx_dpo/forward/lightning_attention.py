"""Lightning Attention (Ling and Ring linear models) in chunks, where mlx-lm loops over tokens.

    h_t = d h_{t-1} + k_t^T v_t,  y_t = q_t h_t,  with one constant decay d for each head

Within a chunk this is causal attention weighted by powers of d, plus what the state before the chunk contributes; a
state is kept for each chunk instead of each token. Source: Qin et al. 2024, "Lightning Attention-2" (arXiv 2401.04658).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
from mlx_lm.models import bailing_moe_linear

CHUNK = 64  # tokens; the weights of a chunk are a matrix of this size for each head


@contextmanager
def chunked_lightning_attention() -> Iterator[None]:
    """Make mlx-lm's Lightning Attention work in chunks inside a `with` block."""
    loop = bailing_moe_linear.recurrent_gla
    bailing_moe_linear.recurrent_gla = lightning_attention
    try:
        yield
    finally:
        bailing_moe_linear.recurrent_gla = loop


def lightning_attention(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, scale: float, h: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Compute what mlx-lm's `recurrent_gla` does.

    Args:
        q: queries, [batch, heads, tokens, K].
        k: keys, likewise.
        v: values, [batch, heads, tokens, V].
        g: [heads], log d.
        scale: of the queries.
        h: [batch, heads, K, V], the state to start from; None for zeros.

    Returns:
        Outputs, [batch, heads, tokens, V], and the last state.
    """
    q = q * scale
    state = mx.zeros((*q.shape[:2], q.shape[-1], v.shape[-1]), q.dtype) if h is None else h
    outputs = []
    for start in range(0, q.shape[2], CHUNK):
        chunk = slice(start, start + CHUNK)
        y, state = _chunk(q[:, :, chunk], k[:, :, chunk], v[:, :, chunk], g[:, None, None], state)
        outputs.append(y)
    return mx.concatenate(outputs, axis=2), state


def _chunk(q: mx.array, k: mx.array, v: mx.array, g: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
    """Outputs of a chunk and the state after it."""
    position = mx.arange(q.shape[2])[:, None]
    distance = position - position.T
    weights = mx.where(distance >= 0, mx.exp(g * mx.maximum(distance, 0)), 0).astype(q.dtype)
    decay_before = mx.exp(g * (position + 1)).astype(q.dtype)
    decay_after = mx.exp(g * (q.shape[2] - 1 - position)).astype(q.dtype)
    y = (weights * (q @ k.swapaxes(-1, -2))) @ v + decay_before * (q @ state)
    decayed = mx.exp(g * q.shape[2]).astype(state.dtype) * state
    return y, decayed + (decay_after * k).swapaxes(-1, -2) @ v
