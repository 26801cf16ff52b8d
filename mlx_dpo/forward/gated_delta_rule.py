"""The gated delta rule in chunks: matrix products in place of a loop over tokens, and memory linear in the length.

The recurrence, of a state S [value size, key size], for each token t:

    S = S_{t-1} diag(g_t),  d_t = beta_t (v_t - S k_t),  S_t = S + d_t k_t^T,  y_t = S_t q_t

Within a chunk that starts from state S_0, with P_i the product of the gates up to i and G_ij that of the gates after j
up to i, the deltas of all its tokens solve one unit lower triangular system (the WY representation):

    (I + N) D = diag(beta) (V - (P * K) S_0^T),  N_ij = beta_i k_i^T diag(G_ij) k_j  for j < i
    Y = (P * Q) S_0^T + A D,                     A_ij = q_i^T diag(G_ij) k_j         for j <= i
    S_C = S_0 diag(P_C) + D^T (G_C * K)

Only the last equation and the right side of the first depend on the chunk before. Yang et al. 2024, "Gated Delta
Networks" (arXiv 2412.06464), with one gate a head; Kimi Team 2025, "Kimi Linear" (arXiv 2510.26692), with one a channel.

Products of gates are multiplied up, never divided, and no logarithm is taken: gates may be zero, and an exponential
costs as much as tens of multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.models import gated_delta

CHUNK = 64  # tokens in a chunk; a power of two
SEGMENT_MATRICES = 32  # chunks times heads between two states that are kept for the backward pass
INVERSE_BASE = 8  # size up to which a triangular matrix is inverted whole, not by halves


@contextmanager
def chunked_gated_delta() -> Iterator[None]:
    """Make mlx-lm's gated delta layers work in chunks inside a `with` block.

    Models import `gated_delta_update`, which looks up its loop and its Metal kernel, which has no gradient, by these
    names.
    """
    loop, kernel = gated_delta.gated_delta_ops, gated_delta.gated_delta_kernel
    gated_delta.gated_delta_ops = gated_delta.gated_delta_kernel = gated_delta_rule
    try:
        yield
    finally:
        gated_delta.gated_delta_ops, gated_delta.gated_delta_kernel = loop, kernel


def gated_delta_rule(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    g: mx.array,
    beta: mx.array,
    state: mx.array | None = None,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Compute what mlx-lm's `gated_delta_ops` does.

    The backward pass keeps the inputs and a state every few chunks, and computes all else anew.

    Args:
        q: [B, T, Hk, Dk], queries, scaled.
        k: [B, T, Hk, Dk], keys, normalized.
        v: [B, T, Hv, Dv], values; Hv is a multiple of Hk.
        g: [B, T, Hv] or [B, T, Hv, Dk], gates in [0, 1].
        beta: [B, T, Hv], step sizes.
        state: [B, Hv, Dv, Dk], the state to start from; None for zeros.
        mask: [B, T] booleans; a token where it is false leaves the state as it is, and its output is of no use.

    Returns:
        Outputs, [B, T, Hv, Dv] in the dtype of q, and the last state, [B, Hv, Dv, Dk] float32.
    """
    (batch, length, _, dk), (heads, dv) = q.shape, v.shape[2:]
    if mask is not None:
        g = mx.where(mask.reshape(batch, length, *[1] * (g.ndim - 2)), g, 1)
        beta = mx.where(mask[..., None], beta, 0)
    state = mx.zeros((batch, heads, dv, dk)) if state is None else state.astype(mx.float32)
    chunk = min(CHUNK, 1 << (length - 1).bit_length())
    size = chunk * max(1, SEGMENT_MATRICES // (batch * heads))
    outputs = []
    borders = list(range(size, length, size))
    for part in zip(*(mx.split(x, borders, axis=1) for x in (q, k, v, g, beta)), strict=True):
        # mx.checkpoint lets no recomputation begin before the gradient arrives; the same holds for the forward pass
        y, state = mx.checkpoint(_segment)(*mx.depends(list(part), [state]), state, chunk)
        outputs.append(y)
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1), state


def _segment(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array, chunk: int
) -> tuple[mx.array, mx.array]:
    """`gated_delta_rule` of a few chunks, all intermediates in memory."""
    (batch, length, key_heads, dk), (heads, dv), dtype = q.shape, v.shape[2:], q.dtype
    padding = -length % chunk
    groups = heads // key_heads

    def in_chunks(x: mx.array, groups: int, fill: float = 0.0) -> mx.array:
        """[B, key heads, value heads of each, chunks, tokens, size]."""
        x = x.astype(mx.float32).reshape(batch, length, key_heads, groups, -1)
        if padding:
            x = mx.pad(x, [(0, 0), (0, padding), (0, 0), (0, 0), (0, 0)], constant_values=fill)
        return x.reshape(batch, -1, chunk, *x.shape[2:]).transpose(0, 3, 4, 1, 2, 5)

    q, k, v, beta = in_chunks(q, 1), in_chunks(k, 1), in_chunks(v, groups), in_chunks(beta, groups)
    g = in_chunks(g, groups, fill=1.0)
    kk, qk, before, after = (_scalar_scores if g.shape[-1] == 1 else _channel_scores)(q, k, g)
    inverse = _unit_lower_inverse(beta * kk)
    y, state = _across_chunks(
        inverse, beta * v, (beta * before) * k, after * k, before[..., -1:, :], qk, before * q, 
        state.reshape(batch, key_heads, groups, 1, dv, dk),
    )
    y = y.transpose(0, 3, 4, 1, 2, 5).reshape(batch, -1, heads, dv)
    return y[:, :length].astype(dtype), state.reshape(batch, heads, dv, dk)


def _across_chunks(
    inverse: mx.array, v: mx.array, k_before: mx.array, k_after: mx.array, decay: mx.array, qk: mx.array, q_before: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """Outputs, and the last state, from what was computed of each chunk alone."""
    count = v.shape[3]
    states, deltas = [], []
    # splits, since the gradient of a slice is as large as all chunks
    for inv, v_n, kb, ka, d in zip(*(mx.split(x, count, axis=3) for x in (inverse, v, k_before, k_after, decay)), strict=True):
        states.append(state)
        deltas.append(inv @ (v_n - kb @ state.swapaxes(-1, -2)))
        state = d * state + deltas[-1].swapaxes(-1, -2) @ ka
    start, delta = mx.concatenate(states, axis=3), mx.concatenate(deltas, axis=3)
    return q_before @ start.swapaxes(-1, -2) + qk @ delta, state


def _scalar_scores(q: mx.array, k: mx.array, g: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """With one gate a head."""
    products = _gate_products(g[..., 0])
    decays, k_t = products[..., 1:], k.swapaxes(-1, -2)
    return decays * (k @ k_t), decays * (q @ k_t), products[..., :1], decays[..., -1, :, None]


def _gate_products(gates: mx.array) -> mx.array:
    """Products of gates i to j of [..., C] gates: [..., C, C + 1], at (j, i); at (j, j + 1) one, after it zero.

    Its gradient takes no division either: that of gate t is the sum over i <= t <= j of (product of i to t-1) *
    gradient_ji * (product of t+1 to j).
    """
    count = gates.shape[-1]
    lower = mx.tril(mx.ones((count, count + 1), mx.bool_))
    with_one = mx.tril(mx.ones((count, count + 1), mx.bool_), 1)

    def forward(gates: mx.array) -> mx.array:
        products = mx.cumprod(mx.where(lower, gates[..., None], 1.0), axis=-2)
        return mx.where(with_one, products, 0.0)

    def backward(gates: mx.array, gradient: mx.array, products: mx.array) -> mx.array:
        through_t = products[..., 1:].swapaxes(-1, -2) @ gradient
        first = mx.broadcast_to(mx.arange(count + 1) == 0, (*products.shape[:-2], 1, count + 1)).astype(mx.float32)
        up_to_t = mx.concatenate([first, products[..., :-1, :]], axis=-2)
        return (through_t * up_to_t).sum(axis=-1)

    custom: Any = mx.custom_function(forward)  # its stub says object
    custom.vjp(backward)
    return custom(gates)


def _channel_scores(q: mx.array, k: mx.array, g: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """With one gate a channel: of blocks of one token, then of two, four and so on, each from two halves."""
    chunk, dk = g.shape[-2:]
    rows = mx.stack([k, q])
    scores = mx.stack([mx.zeros_like(g[..., :1]), mx.broadcast_to((q * k).sum(-1, keepdims=True), g[..., :1].shape)])
    before, after, size = g, mx.ones_like(g), 1

    def halves(x: mx.array) -> list[mx.array]:
        blocks = x.reshape(*x.shape[:-2], chunk // (2 * size), 2, size, -1)
        return [half.squeeze(-3) for half in mx.split(blocks, 2, axis=-3)]

    while size < chunk:
        (before_1, before_2), (after_1, after_2) = halves(before), halves(after)
        corner = (halves(rows)[1] * before_2) @ (halves(k)[0] * after_1).swapaxes(-1, -2)
        scores = _lower_blocks(*halves(scores), corner).reshape(*scores.shape[:-1], 2 * size)
        before = mx.concatenate([before_1, before_1[..., -1:, :] * before_2], axis=-2).reshape(g.shape)
        after = mx.concatenate([after_1 * before_2[..., -1:, :], after_2], axis=-2).reshape(g.shape)
        size *= 2
    return scores[0], scores[1], before, after


def _lower_blocks(first: mx.array, second: mx.array, corner: mx.array) -> mx.array:
    """The matrices [[first, 0], [corner, second]]."""
    top = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([top, mx.concatenate([corner, second], axis=-1)], axis=-2)


def _unit_lower_inverse(lower: mx.array) -> mx.array:
    """(I + N)^-1, where N is the part of [..., C, C] matrices below the diagonal; the rest is ignored."""

    def backward(lower: mx.array, gradient: mx.array, inverse: mx.array) -> mx.array:
        transposed = inverse.swapaxes(-1, -2)
        return -mx.tril(transposed @ gradient @ transposed, -1)

    custom: Any = mx.custom_function(_inverse_by_halves)
    custom.vjp(backward)
    return custom(lower)


def _inverse_by_halves(lower: mx.array) -> mx.array:
    """By blocks, as forward substitution: powers of N, as a series has them, grow and cancel."""
    size = lower.shape[-1]
    half = size // 2
    if size <= INVERSE_BASE:
        return _inverse_by_levels(lower)
    first, second = _inverse_by_halves(mx.stack([lower[..., :half, :half], lower[..., half:, half:]]))
    corner = -(second @ lower[..., half:, :half] @ first)
    return _lower_blocks(first, second, corner)


def _inverse_by_levels(lower: mx.array) -> mx.array:
    """The same without taking the blocks apart: those of one size, in all places at once."""
    size, index = lower.shape[-1], mx.arange(lower.shape[-1])
    inverse = mx.broadcast_to(mx.eye(size), lower.shape)
    half = 1
    while half < size:
        block = index // half
        corner = (block[:, None] == block[None] + 1) & (block[None] % 2 == 0)
        masked = mx.where(corner, lower, 0.0)
        inverse = inverse - (masked if half == 1 else inverse @ masked @ inverse)
        half *= 2
    return inverse
