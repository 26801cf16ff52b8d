"""The gated delta rule in chunks: matrix products in place of a loop over tokens, and memory linear in the length.

The recurrence of a state S [value size, key size] over tokens t, with gates g_t, step sizes beta_t:

    S' = S_{t-1} diag(g_t),  d_t = beta_t (v_t - S' k_t),  S_t = S' + d_t k_t^T,  y_t = S_t q_t

In a chunk that starts from S_0, let P_i be the product of its gates up to i, and G_ij that of the gates after j up to
i. The d of all its tokens, the rows of D, solve one unit lower triangular system (the WY representation):

    (I + N) D = diag(beta) (V - (P * K) S_0^T),  N_ij = beta_i k_i^T diag(G_ij) k_j  for j < i
    Y = (P * Q) S_0^T + A D,                     A_ij = q_i^T diag(G_ij) k_j         for j <= i
    S_C = S_0 diag(P_C) + D^T (G_C * K)

N and A do not depend on S_0, so they are computed for many chunks together. Source: Yang et al. 2024, "Gated Delta
Networks" (arXiv 2412.06464), for one gate a head; Kimi Team 2025, "Kimi Linear" (arXiv 2510.26692), for one a channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models import gated_delta

from mlx_dpo.forward.chunked_recurrence import (
    chunk_size,
    from_chunks,
    gated_scores,
    in_chunks,
    in_segments,
    solve_chunks,
    unit_lower_inverse,
)

Scores = tuple[mx.array, mx.array, mx.array, mx.array]


@contextmanager
def chunked_gated_delta() -> Iterator[None]:
    """Make mlx-lm's gated delta layers work in chunks inside a `with` block.

    Models import `gated_delta_update` by name; that looks up the loop, and the Metal kernel, which has no gradient, in
    its module.
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
    """Compute what mlx-lm's `gated_delta_ops` does. Of a masked token, which has no output, it is another number.

    The backward pass keeps the inputs and a state for each `SEGMENT` tokens, and recomputes the rest.

    Args:
        q: [B, T, Hk, Dk], queries, scaled.
        k: [B, T, Hk, Dk], keys, normalized.
        v: [B, T, Hv, Dv], values; Hv is a multiple of Hk.
        g: [B, T, Hv] or [B, T, Hv, Dk], gates in [0, 1].
        beta: [B, T, Hv], step sizes.
        state: [B, Hv, Dv, Dk], the state to start from; None for zeros.
        mask: [B, T] booleans; where it is false, a token leaves the state as it is.

    Returns:
        Outputs, [B, T, Hv, Dv] in the dtype of q, and the last state, [B, Hv, Dv, Dk] float32.
    """
    (batch, length, _, key_size), (heads, value_size) = q.shape, v.shape[2:]
    if mask is not None:
        g = mx.where(mask.reshape(batch, length, *[1] * (g.ndim - 2)), g, 1)
        beta = mx.where(mask[..., None], beta, 0)
    state = mx.zeros((batch, heads, value_size, key_size)) if state is None else state.astype(mx.float32)
    y, state = in_segments(partial(_segment, chunk=chunk_size(length)))(q, k, v, g, beta, state)[:2]
    return y, state


def _segment(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array, *, chunk: int
) -> tuple[mx.array, mx.array]:
    """`gated_delta_rule` of a few chunks, with all intermediates in memory."""
    (batch, length, key_heads, _), heads, dtype = q.shape, v.shape[2], q.dtype
    values_per_key = heads // key_heads

    def chunks(x: mx.array, groups: int, padding_value: float = 0.0) -> mx.array:
        return in_chunks(x.reshape(batch, length, key_heads, groups, -1), chunk, padding_value)

    q, k, v = chunks(q, 1), chunks(k, 1), chunks(v, values_per_key)
    g, beta = chunks(g, values_per_key, padding_value=1.0), chunks(beta, values_per_key)
    kk, qk, before, after = (_scalar_scores if g.shape[-1] == 1 else _channel_scores)(q, k, g)
    start, delta, last = solve_chunks(
        unit_lower_inverse(beta * kk),
        beta * v,
        -(beta * before) * k,
        after * k,
        before[..., -1:, :],
        None,
        state.reshape(batch, key_heads, values_per_key, 1, *state.shape[2:]),
    )
    y = (before * q) @ start.swapaxes(-1, -2) + qk @ delta
    return from_chunks(y, length).astype(dtype), last.reshape(state.shape)


def _scalar_scores(q: mx.array, k: mx.array, g: mx.array) -> Scores:
    """Compute N without beta, A, P and G_C of the module's docstring, where each head has one gate.

    Only what is below the diagonal of the first is used.
    """
    products, k_transposed = _gate_products(g[..., 0]), k.swapaxes(-1, -2)
    decays = products[..., 1:]
    return decays * (k @ k_transposed), decays * (q @ k_transposed), products[..., :1], decays[..., -1, :, None]


def _channel_scores(q: mx.array, k: mx.array, g: mx.array) -> Scores:
    """The same with one gate a channel."""
    own = mx.broadcast_to((q * k).sum(axis=-1, keepdims=True), (*g.shape[:-1], 1))
    scores, before, after = gated_scores(
        mx.stack([k, q])[:, None], g[None, None], k[None, None], mx.stack([mx.zeros_like(own), own])[:, None], g
    )
    return scores[0, 0], scores[1, 0], before[0, 0], after


def _gate_products(gates: mx.array) -> mx.array:
    """Products of gates j to i of [..., C] gates: [..., C, C + 1], at (i, j); of no gates, at (i, i + 1), it is one.

    The gradient takes no division either: for gate t, it is the sum over j <= t <= i of the gradient at (i, j) times
    the product of gates j to t - 1 times that of gates t + 1 to i.
    """
    count = gates.shape[-1]
    used = mx.tril(mx.ones((count, count + 1), mx.bool_), 1)

    def forward(gates: mx.array) -> mx.array:
        factors = mx.where(mx.tril(used), gates[..., None], 1.0)
        return mx.where(used, mx.cumprod(factors, axis=-2), 0.0)

    def backward(gates: mx.array, gradient: mx.array, products: mx.array) -> mx.array:
        after_t = products[..., 1:].swapaxes(-1, -2) @ gradient
        no_gates = mx.zeros_like(products[..., :1, :]) + (mx.arange(count + 1) == 0)
        before_t = mx.concatenate([no_gates, products[..., :-1, :]], axis=-2)
        return (after_t * before_t).sum(axis=-1)

    custom: Any = mx.custom_function(forward)  # its stub says object
    custom.vjp(backward)
    return custom(gates)
