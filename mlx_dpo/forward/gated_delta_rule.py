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

Products of gates are multiplied up: nothing is divided, and no logarithm is taken. So gates may be zero, and there are
no exponentials, each of which costs as much as tens of multiplications on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.models import gated_delta

CHUNK = 64  # tokens in a chunk; a power of two
SEGMENT = 4 * CHUNK  # tokens whose intermediates are in memory at a time; the states between segments are kept

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
    y, state = _in_segments(min(CHUNK, 1 << (length - 1).bit_length()))(q, k, v, g, beta, state)[:2]
    return y, state


def _in_segments(chunk: int) -> Any:
    """The rule, a segment at a time; after its two outputs come the states between the segments.

    mlx orders a graph by its edges alone. So each segment depends on the one before, and in the backward pass on the
    gradients of the one after: what is computed inside of one is freed before the next begins. The segments are cut
    and joined here, and not in the graph, because mlx orders the gradient of a split in a way that holds all of them.
    """

    def segment(*inputs: mx.array) -> tuple[mx.array, mx.array]:
        return _segment(*inputs, chunk=chunk)

    def forward(*inputs: mx.array) -> tuple[mx.array, ...]:
        *tokens, state = inputs
        outputs, states = [], []
        for part in _parts(tokens):
            results = segment(*mx.depends(part, [state]), state)
            y, state = mx.depends(list(results), list(results))
            outputs.append(y)
            states.append(state)
        return mx.concatenate(outputs, axis=1), state, *states[:-1]

    def backward(inputs: list[mx.array], gradients: list[mx.array], outputs: list[mx.array]) -> list[mx.array]:
        *tokens, first_state = inputs
        y_grad, state_grad = gradients[:2]
        states = [first_state, *outputs[2:]]
        token_grads = []
        for part, y_part, state in reversed(list(zip(_parts(tokens), _parts([y_grad]), states, strict=True))):
            upstream = [*y_part, state_grad]
            _, grads = mx.vjp(segment, mx.depends([*part, state], upstream), upstream)
            *grads, state_grad = mx.depends(grads, grads)
            token_grads.append(grads)
        return [*(mx.concatenate(list(grads[::-1]), axis=1) for grads in zip(*token_grads, strict=True)), state_grad]

    custom: Any = mx.custom_function(forward)  # its stub says object
    custom.vjp(backward)
    return custom


def _parts(arrays: list[mx.array]) -> list[list[mx.array]]:
    """The segments of arrays of [B, T, ...]."""
    return [[x[:, i : i + SEGMENT] for x in arrays] for i in range(0, arrays[0].shape[1], SEGMENT)]


def _segment(
    q: mx.array, k: mx.array, v: mx.array, g: mx.array, beta: mx.array, state: mx.array, *, chunk: int
) -> tuple[mx.array, mx.array]:
    """`gated_delta_rule` of a few chunks, with all intermediates in memory."""
    (batch, length, key_heads, _), heads, dtype = q.shape, v.shape[2], q.dtype
    values_per_key, padding = heads // key_heads, -length % chunk

    def in_chunks(x: mx.array, groups: int, padding_value: float = 0.0) -> mx.array:
        """[B, key heads, value heads of each or 1, chunks, tokens, size]."""
        x = x.astype(mx.float32).reshape(batch, length, key_heads, groups, -1)
        x = mx.pad(x, [(0, 0), (0, padding), *[(0, 0)] * 3], constant_values=padding_value) if padding else x
        return x.reshape(batch, -1, chunk, *x.shape[2:]).transpose(0, 3, 4, 1, 2, 5)

    q, k, v = in_chunks(q, 1), in_chunks(k, 1), in_chunks(v, values_per_key)
    g, beta = in_chunks(g, values_per_key, padding_value=1.0), in_chunks(beta, values_per_key)
    kk, qk, before, after = (_scalar_scores if g.shape[-1] == 1 else _channel_scores)(q, k, g)
    start, delta, last = _solve_chunks(
        _unit_lower_inverse(beta * kk),
        beta * v,
        (beta * before) * k,
        after * k,
        before[..., -1:, :],
        state.reshape(batch, key_heads, values_per_key, 1, *state.shape[2:]),
    )
    y = (before * q) @ start.swapaxes(-1, -2) + qk @ delta
    y = y.transpose(0, 3, 4, 1, 2, 5).reshape(batch, length + padding, heads, -1)[:, :length]
    return y.astype(dtype), last.reshape(state.shape)


def _solve_chunks(
    inverse: mx.array, v: mx.array, k_before: mx.array, k_after: mx.array, decay: mx.array, state: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The part that runs from chunk to chunk. All arguments but the last have chunks as axis 3.

    Returns:
        The state at the start of each chunk, the solutions D of each, and the last state.
    """
    # by split: of a slice, the gradient has the size of all chunks
    chunks = zip(*(mx.split(x, v.shape[3], axis=3) for x in (inverse, v, k_before, k_after, decay)), strict=True)
    starts, deltas = [], []
    for inverse_n, v_n, before_n, after_n, decay_n in chunks:
        delta = inverse_n @ (v_n - before_n @ state.swapaxes(-1, -2))
        starts.append(state)
        deltas.append(delta)
        state = decay_n * state + delta.swapaxes(-1, -2) @ after_n
    return mx.concatenate(starts, axis=3), mx.concatenate(deltas, axis=3), state


def _scalar_scores(q: mx.array, k: mx.array, g: mx.array) -> Scores:
    """Compute N without beta, A, P and G_C of the module's docstring, where each head has one gate.

    Only what is below the diagonal of the first is used.
    """
    products, k_transposed = _gate_products(g[..., 0]), k.swapaxes(-1, -2)
    decays = products[..., 1:]
    return decays * (k @ k_transposed), decays * (q @ k_transposed), products[..., :1], decays[..., -1, :, None]


def _channel_scores(q: mx.array, k: mx.array, g: mx.array) -> Scores:
    """With one gate a channel: first of blocks of one token, then of two, four and so on, each from two halves.

    A pair of tokens in different halves is as far from their border as P of the second and G_C of the first say.
    """
    chunk, size = g.shape[-2], 1
    rows = mx.stack([k, q])
    own = mx.broadcast_to((q * k).sum(axis=-1, keepdims=True), (*g.shape[:-1], 1))
    scores, before, after = mx.stack([mx.zeros_like(own), own]), g, mx.ones_like(g)

    def halves(x: mx.array) -> list[mx.array]:
        blocks = x.reshape(*x.shape[:-2], chunk // (2 * size), 2, size, -1)
        return [half.squeeze(-3) for half in mx.split(blocks, 2, axis=-3)]

    while size < chunk:
        (before_1, before_2), (after_1, after_2) = halves(before), halves(after)
        corner = (halves(rows)[1] * before_2) @ (halves(k)[0] * after_1).swapaxes(-1, -2)
        first, second = halves(scores)
        scores = _lower_blocks(first, second, corner).reshape(*scores.shape[:-1], 2 * size)
        after = mx.concatenate([after_1 * before_2[..., -1:, :], after_2], axis=-2).reshape(g.shape)
        before = mx.concatenate([before_1, before_1[..., -1:, :] * before_2], axis=-2).reshape(g.shape)
        size *= 2
    return scores[0], scores[1], before, after


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


def _unit_lower_inverse(lower: mx.array) -> mx.array:
    """(I + N)^-1, where N is the part of [..., C, C] matrices below the diagonal; the rest is ignored."""

    def backward(lower: mx.array, gradient: mx.array, inverse: mx.array) -> mx.array:
        transposed = inverse.swapaxes(-1, -2)
        return -mx.tril(transposed @ gradient @ transposed, -1)

    custom: Any = mx.custom_function(_inverse_by_halves)  # its stub says object
    custom.vjp(backward)
    return custom(lower)


def _inverse_by_halves(lower: mx.array) -> mx.array:
    """As accurate as forward substitution; a series in powers of N is not, since they grow before they cancel."""
    half = lower.shape[-1] // 2
    if not half:
        return mx.ones_like(lower)
    first, second = _inverse_by_halves(mx.stack([lower[..., :half, :half], lower[..., half:, half:]]))
    return _lower_blocks(first, second, -(second @ lower[..., half:, :half] @ first))


def _lower_blocks(first: mx.array, second: mx.array, corner: mx.array) -> mx.array:
    """The matrices [[first, 0], [corner, second]]."""
    top = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([top, mx.concatenate([corner, second], axis=-1)], axis=-2)
