"""The recurrence of RWKV-7 in chunks, where mlx-lm loops over tokens or runs a Metal kernel that has no gradient.

The recurrence of a state S [value size, key size] over tokens t, with gates w_t:

    u_t = S_{t-1} a_t,  S_t = S_{t-1} diag(w_t) + u_t b_t^T + v_t k_t^T,  y_t = S_t r_t

In a chunk that starts from S_0, let P_i be the product of its gates up to i, and G_ij that of the gates after j up to
i. The u of all its tokens, the rows of U, solve one unit lower triangular system:

    (I - N) U = (P' * A) S_0^T + M V,  P'_i = P_{i-1},  N_ij = a_i^T diag(G_{i-1,j}) b_j,  M_ij with k_j,  for j < i
    Y = (P * R) S_0^T + E U + F V,     E_ij = r_i^T diag(G_ij) b_j,  F_ij with k_j,                        for j <= i
    S_C = S_0 diag(P_C) + U^T (G_C*B) + V^T (G_C*K)

Source: Peng et al. 2025, "RWKV-7 Goose" (arXiv 2503.14456), equations 16 and 17.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import mlx.core as mx
from mlx_lm.models.rwkv7 import Rwkv7TimeMixing

from mlx_dpo.forward.chunked_recurrence import (
    chunk_size,
    from_chunks,
    gated_scores,
    in_chunks,
    in_segments,
    solve_chunks,
    unit_lower_inverse,
)


@contextmanager
def chunked_rwkv7() -> Iterator[None]:
    """Make mlx-lm's RWKV-7 layers work in chunks inside a `with` block."""

    def in_place_of_the_loop(_: Rwkv7TimeMixing, *inputs: mx.array | None) -> tuple[mx.array, mx.array]:
        return rwkv7_recurrence(*inputs)  # type: ignore[arg-type]  # only the last, the state, may be None

    loop = Rwkv7TimeMixing._wkv7
    Rwkv7TimeMixing._wkv7 = in_place_of_the_loop
    try:
        yield
    finally:
        Rwkv7TimeMixing._wkv7 = loop


def rwkv7_recurrence(
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    state: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Compute what `_wkv7` of mlx-lm's RWKV-7 does.

    The backward pass keeps the inputs and a state for each segment, and recomputes the rest.

    Args:
        r: [B, T, H, D], receptances, the queries.
        w: [B, T, H, D], gates in [0, 1].
        k: [B, T, H, D], keys.
        v: [B, T, H, D], values.
        a: [B, T, H, D], what reads the state to be replaced.
        b: [B, T, H, D], where the replacement is written.
        state: [B, H, D, D], values by keys, the state to start from; None for zeros.

    Returns:
        Outputs, [B, T, H, D] in the dtype of r, and the last state, [B, H, D, D] float32.
    """
    batch, length, heads, size = r.shape
    state = mx.zeros((batch, heads, size, size)) if state is None else state.astype(mx.float32)
    y, state = in_segments(partial(_segment, chunk=chunk_size(length)))(r, w, k, v, a, b, state)[:2]
    return y, state


def _segment(
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    state: mx.array,
    *,
    chunk: int,
) -> tuple[mx.array, mx.array]:
    """`rwkv7_recurrence` of a few chunks, with all intermediates in memory."""
    length, dtype = r.shape[1], r.dtype

    def chunks(x: mx.array, padding_value: float = 0.0) -> mx.array:
        return in_chunks(mx.expand_dims(x, 3), chunk, padding_value)

    r, k, v, a, b, w = chunks(r), chunks(k), chunks(v), chunks(a), chunks(b), chunks(w, padding_value=1.0)
    reads, writes = mx.stack([a, r])[:, None], mx.stack([b, k])[None]
    of_same_token = (r * writes[0]).sum(axis=-1, keepdims=True)
    (scores_a, scores_r), before, after = gated_scores(
        reads,
        mx.stack([mx.ones_like(w), w])[:, None],
        writes,
        mx.stack([mx.zeros_like(of_same_token), of_same_token]),
        w,
    )
    (before_a, before_r), (b_after, k_after) = before[:, 0], after * writes[0]
    start, u, last = solve_chunks(
        unit_lower_inverse(-scores_a[0]),
        scores_a[1] @ v,
        before_a * a,
        b_after,
        before_r[..., -1:, :],
        v.swapaxes(-1, -2) @ k_after,
        mx.expand_dims(state, (2, 3)),
    )
    y = (before_r * r) @ start.swapaxes(-1, -2) + scores_r[0] @ u + scores_r[1] @ v
    return from_chunks(y, length).astype(dtype), last.reshape(state.shape)
