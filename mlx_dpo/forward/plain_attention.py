"""Attention in plain operations: mlx's fused attention is compared with it, and replaced by it where it is wrong."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def plain_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **placement: Any,
) -> mx.array:
    """Compute what `mx.fast.scaled_dot_product_attention` does; its gradient is mlx's own of each operation.

    Args:
        q: [B, H, T, D], queries; H is a multiple of the number of key heads (grouped-query attention).
        k: [B, G, S, D], keys.
        v: [B, G, S, E], values.
        scale: factor of the scores.
        mask: broadcastable to [B, H, T, S]: booleans, false where a key is not attended to, or floats to add to the
            scores. "causal": the last query attends to all keys, and each before it to one fewer. None for no mask.
        sinks: [H], a score for each head that takes a share of the softmax and has no value; None for none.
        placement: on which stream and by which kernel mlx would run it; ignored, since no number depends on it.

    Returns:
        [B, H, T, E] in the dtype of q.
    """
    (batch, heads, length, _), (groups, num_keys) = q.shape, k.shape[1:3]
    grouped = q.reshape(batch, groups, heads // groups, length, -1)
    scores = (scale * grouped) @ k[:, :, None].swapaxes(-1, -2)
    scores = _masked(scores.astype(mx.float32).reshape(batch, heads, length, num_keys), mask)
    if sinks is not None:
        sink = mx.broadcast_to(sinks.astype(mx.float32)[None, :, None, None], (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, sink], axis=-1)
    weights = mx.softmax(scores, axis=-1)[..., :num_keys].astype(q.dtype)
    values = weights.reshape(*grouped.shape[:-1], num_keys) @ v[:, :, None]
    return values.reshape(batch, heads, length, -1)


def _masked(scores: mx.array, mask: mx.array | str | None) -> mx.array:
    if mask is None:
        return scores
    if isinstance(mask, str):
        length, num_keys = scores.shape[-2:]
        mask = mx.arange(num_keys - length, num_keys)[:, None] >= mx.arange(num_keys)
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.finfo(scores.dtype).min)
    return scores + mask.astype(mx.float32)
