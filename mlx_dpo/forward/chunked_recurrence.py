"""Recurrences over tokens, computed in chunks by matrix products, with memory linear in the length.

A chunk is what one set of matrix products computes; a segment is what is in memory at a time. The states between
segments are kept for the backward pass, and what is inside of a segment is computed again.

Products of gates are multiplied up: nothing is divided, and no logarithm is taken. So gates may be zero, and there are
no exponentials, each of which costs as much as tens of multiplications on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

CHUNK = 64  # tokens in a chunk, at most; a power of two
SEGMENT = 4 * CHUNK  # tokens in a segment

Segment = Callable[..., tuple[mx.array, mx.array]]


def chunk_size(length: int) -> int:
    """The tokens of a chunk in a sequence of `length` tokens."""
    return min(CHUNK, 1 << (length - 1).bit_length())


def in_segments(segment: Segment, num_constants: int = 0, size: int | None = None) -> Any:
    """Make a recurrence of any length from one over a segment.

    mlx orders a graph by its edges alone. So each segment depends on the one before, and in the backward pass on the
    gradients of the one after: what is computed inside of one is freed before the next begins. The segments are cut
    and joined here, and not in the graph, because mlx orders the gradient of a split in a way that holds all of them.

    Args:
        segment: takes arrays of [B, tokens, ...], constants, and the state before its tokens; returns an array of
            [B, tokens, ...] and the state after them.
        num_constants: how many arguments between the tokens' and the state are the same for all segments.
        size: tokens in a segment; `SEGMENT` if None.

    Returns:
        A function of the same arguments. After its two outputs come the states between the segments.
    """
    size = size or SEGMENT

    def split(inputs: list[mx.array]) -> tuple[list[mx.array], list[mx.array], mx.array]:
        num_tokens = len(inputs) - num_constants - 1
        return inputs[:num_tokens], inputs[num_tokens:-1], inputs[-1]

    def parts(arrays: list[mx.array]) -> list[list[mx.array]]:
        return [[x[:, i : i + size] for x in arrays] for i in range(0, arrays[0].shape[1], size)]

    def forward(*inputs: mx.array) -> tuple[mx.array, ...]:
        tokens, constants, state = split(list(inputs))
        outputs, states = [], []
        for part in parts(tokens):
            results = segment(*mx.depends(part, [state]), *constants, state)
            y, state = mx.depends(list(results), list(results))
            outputs.append(y)
            states.append(state)
        return mx.concatenate(outputs, axis=1), state, *states[:-1]

    def backward(inputs: list[mx.array], gradients: list[mx.array], outputs: list[mx.array]) -> list[mx.array]:
        tokens, constants, first_state = split(list(inputs))
        y_grad, state_grad = gradients[:2]
        states = [first_state, *outputs[2:]]
        token_grads, constant_grads = [], [mx.zeros_like(x) for x in constants]
        for part, y_part, state in reversed(list(zip(parts(tokens), parts([y_grad]), states, strict=True))):
            upstream = [*y_part, state_grad]
            _, grads = mx.vjp(segment, mx.depends([*part, *constants, state], upstream), upstream)
            part_grads, more, state_grad = split(mx.depends(grads, grads))
            constant_grads = [total + grad for total, grad in zip(constant_grads, more, strict=True)]
            token_grads.append(part_grads)
        joined = [mx.concatenate(list(grads[::-1]), axis=1) for grads in zip(*token_grads, strict=True)]
        return [*joined, *constant_grads, state_grad]

    custom: Any = mx.custom_function(forward)  # its stub says object
    custom.vjp(backward)
    return custom


def in_chunks(x: mx.array, chunk: int, padding_value: float = 0.0) -> mx.array:
    """[B, T, H, G, size], G heads for each of H, as float32 of [B, H, G, chunks, chunk, size]."""
    padding = -x.shape[1] % chunk
    x = x.astype(mx.float32)
    x = mx.pad(x, [(0, 0), (0, padding), *[(0, 0)] * 3], constant_values=padding_value) if padding else x
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).transpose(0, 3, 4, 1, 2, 5)


def from_chunks(x: mx.array, length: int) -> mx.array:
    """[B, T, heads, size] of what `in_chunks` made, without its padding."""
    batch, heads, size = x.shape[0], x.shape[1] * x.shape[2], x.shape[-1]
    return x.transpose(0, 3, 4, 1, 2, 5).reshape(batch, -1, heads, size)[:, :length]


def solve_chunks(
    inverse: mx.array,
    constant: mx.array,
    rows: mx.array,
    keys: mx.array,
    decay: mx.array,
    written: mx.array | None,
    state: mx.array,
) -> tuple[mx.array, mx.array, mx.array]:
    """From chunk to chunk, D = inverse (constant + rows S^T) and S' = S diag(decay) + D^T keys + written.

    Args:
        inverse: [..., chunks, C, C], chunks being axis 3 of this and all others.
        constant: [..., chunks, C, value size].
        rows: [..., chunks, C, key size].
        keys: likewise.
        decay: [..., chunks, 1, key size] or [..., chunks, 1, 1].
        written: [..., chunks, value size, key size]; None for nothing.
        state: [..., 1, value size, key size], before the first chunk.

    Returns:
        The states at the start of the chunks, the solutions D, and the last state.
    """

    def split(x: mx.array) -> list[mx.array]:  # of a slice, the gradient has the size of all chunks
        return list(mx.split(x, inverse.shape[3], axis=3))

    arrays = zip(*(split(x) for x in (inverse, constant, rows, keys, decay)), strict=True)
    writes = [mx.array(0.0)] * inverse.shape[3] if written is None else split(written)
    starts, solutions = [], []
    for (inverse_n, constant_n, rows_n, keys_n, decay_n), written_n in zip(arrays, writes, strict=True):
        solution = inverse_n @ (constant_n + rows_n @ state.swapaxes(-1, -2))
        starts.append(state)
        solutions.append(solution)
        state = decay_n * state + solution.swapaxes(-1, -2) @ keys_n + written_n
    return mx.concatenate(starts, axis=3), mx.concatenate(solutions, axis=3), state


def gated_scores(
    rows: mx.array, before: mx.array, keys: mx.array, own: mx.array, gates: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Products of rows and earlier keys, decayed by the gates between them, with one gate a channel.

    Computed first for blocks of one token, then of two, four and so on, each from two halves: a pair of tokens in
    different halves is as far from their border as `before` of the second and `after` of the first say.

    Args:
        rows: [R, 1, ..., C, K].
        before: [R or 1, 1, ..., C, K], what decays a row's product with the state before its token; the last of them
            is `gates`.
        keys: [1, S, ..., C, K].
        own: [R, S, ..., C, 1], the products of each token's rows with its own keys.
        gates: [..., C, K].

    Returns:
        The products, [R, S, ..., C, C], zero above the diagonal; the decay from the chunk's start to each row, like
        `before`; the decay from each key to the chunk's end, [..., C, K].
    """
    chunk, size = gates.shape[-2], 1
    scores, after = own, mx.ones_like(gates)

    def halves(x: mx.array) -> list[mx.array]:
        blocks = x.reshape(*x.shape[:-2], chunk // (2 * size), 2, size, -1)
        return [half.squeeze(-3) for half in mx.split(blocks, 2, axis=-3)]

    while size < chunk:
        (before_1, before_2), (after_1, after_2) = halves(before), halves(after)
        first_gates = before_1[-1, 0][..., -1:, :]
        second_gates = before_2[-1, 0][..., -1:, :]
        corner = (halves(rows)[1] * before_2) @ (halves(keys)[0] * after_1).swapaxes(-1, -2)
        first, second = halves(scores)
        scores = lower_blocks(first, second, corner).reshape(*scores.shape[:-1], 2 * size)
        after = mx.concatenate([after_1 * second_gates, after_2], axis=-2).reshape(gates.shape)
        before = mx.concatenate([before_1, first_gates * before_2], axis=-2).reshape(before.shape)
        size *= 2
    return scores, before, after


def unit_lower_inverse(lower: mx.array) -> mx.array:
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
    return lower_blocks(first, second, -(second @ lower[..., half:, :half] @ first))


def lower_blocks(first: mx.array, second: mx.array, corner: mx.array) -> mx.array:
    """The matrices [[first, 0], [corner, second]]."""
    top = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([top, mx.concatenate([corner, second], axis=-1)], axis=-2)
