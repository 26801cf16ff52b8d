"""The next token of each sequence, from its logits and a uniform random number.

The number is inverted through the cumulative distribution function of the tokens that `top_p` and `min_p` leave, so
that a sequence's token depends on its own logits and number alone, whatever else is in the batch. The sums are of
blocks of the vocabulary and then inside a block: a running float32 sum over a large vocabulary would lose digits.

On the CPU numpy does all of this: it is many times faster there at exponentials (see `forward/softmax.py`).
"""

from __future__ import annotations

import hashlib

import mlx.core as mx
import numpy as np

from mlx_dpo.forward.device import runs_on_cpu
from mlx_dpo.sampling.completions import SamplingParams

BLOCK = 512  # tokens of the vocabulary that are summed together
TOP_P_FLOORS = (1e-3, 1e-5, 0.0)  # least weights, relative to the largest, of the tokens that are sorted


def completion_uniforms(seed: int, prompt_seed: int, completion: int, count: int) -> np.ndarray:
    """Random numbers of a completion's positions, from a counter-based generator (Philox).

    Args:
        seed: of the sampling.
        prompt_seed: of the prompt.
        completion: index among the completions of the prompt.
        count: of positions.

    Returns:
        [count] float32, multiples of 2^-24 in [0, 1); the first ones do not depend on `count`.
    """
    text = f"{seed} {prompt_seed} {completion}"
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return ((np.random.Philox(key=key).random_raw(count) >> np.uint64(40)) * 2.0**-24).astype(np.float32)


def sample_tokens(logits: mx.array, uniforms: np.ndarray, params: SamplingParams) -> tuple[mx.array, mx.array]:
    """Sample a token for each sequence.

    Args:
        logits: [sequences, vocabulary], in any float type.
        uniforms: [sequences] random numbers in [0, 1).
        params: temperature, `top_p` and `min_p`.

    Returns:
        [sequences] token ids, and [sequences] their float32 log-probs at temperature 1, nats.
    """
    logits = logits.astype(mx.float32)
    if not runs_on_cpu():
        return sample_by_mlx(logits, uniforms, params)
    mx.eval(logits)
    rows = zip(np.asarray(logits), uniforms, strict=True)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, as in mlx
        pairs = [_sample_row(row, uniform, params) for row, uniform in rows]
    tokens, logps = zip(*pairs, strict=True)
    return mx.array(tokens, mx.int32), mx.array(logps, mx.float32)


def _sample_row(logits: np.ndarray, uniform: float, params: SamplingParams) -> tuple[int, float]:
    """Sample one token.

    Args:
        logits: [vocabulary] float32.
        uniform: a random number in [0, 1).
        params: temperature, `top_p` and `min_p`.

    Returns:
        The token id and its log-prob at temperature 1.
    """
    best = int(logits.argmax())
    shifted = logits - logits[best]
    weights = np.exp(shifted)
    log_total = np.log(weights.sum(dtype=np.float64))
    if params.temperature == 0:
        return best, float(-log_total)
    least = max(_top_p_weight(weights, params.top_p), params.min_p)
    tempered = weights if params.temperature == 1 else np.exp(shifted / np.float32(params.temperature))
    token = _invert(np.where(weights >= least, tempered, np.float32(0)) if least > 0 else tempered, uniform)
    return token, float(shifted[token] - log_total)


def _top_p_weight(weights: np.ndarray, top_p: float) -> float:
    """The least weight among the fewest most likely tokens that have `top_p` of the sum; 0 if all tokens are taken.

    Args:
        weights: [vocabulary], the largest 1.
        top_p: the share of the sum.
    """
    if top_p >= 1:
        return 0.0
    needed = top_p * weights.sum(dtype=np.float64)
    for floor in TOP_P_FLOORS:
        candidates = np.sort(weights[weights >= floor])[::-1]
        index = int(np.searchsorted(np.cumsum(candidates, dtype=np.float64), needed))
        if index < len(candidates):
            return float(candidates[index])
    return 0.0


def _invert(weights: np.ndarray, uniform: float) -> int:
    """The first token at which the running sum of the weights, [vocabulary], exceeds `uniform` of their total."""
    starts = np.arange(0, len(weights), BLOCK)
    block_ends = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    target = float(uniform) * block_ends[-1]
    block = _first_index_above(block_ends, target)
    ends = np.cumsum(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    return block * BLOCK + _first_index_above(ends, target - (block_ends[block - 1] if block else 0.0))


def _first_index_above(ends: np.ndarray, target: float) -> int:
    """Index of the first running sum above the target; by rounding at most the first that has the last one's value."""
    return int(min(np.searchsorted(ends, target, side="right"), np.searchsorted(ends, ends[-1])))


def sample_by_mlx(logits: mx.array, uniforms: np.ndarray, params: SamplingParams) -> tuple[mx.array, mx.array]:
    """`sample_tokens` on a GPU, where nothing is read back; arguments and results as there, logits in float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = mx.exp(shifted)
    log_totals = mx.log(weights.sum(axis=-1, keepdims=True))
    if params.temperature == 0:
        tokens = mx.argmax(logits, axis=-1)
    else:
        least = mx.maximum(_top_p_weights(weights, params.top_p), params.min_p)
        tempered = weights if params.temperature == 1 else mx.exp(shifted / params.temperature)
        tokens = _invert_rows(mx.where(weights >= least, tempered, 0), mx.array(uniforms)[:, None])
    logps = mx.take_along_axis(shifted, tokens[:, None], axis=-1) - log_totals
    return tokens.astype(mx.int32), logps[:, 0]


def _top_p_weights(weights: mx.array, top_p: float) -> mx.array:
    """`_top_p_weight` for [sequences, vocabulary], as [sequences, 1]."""
    if top_p >= 1:
        return mx.zeros((len(weights), 1))
    ascending = mx.sort(weights, axis=-1)
    above = mx.cumsum(ascending, axis=-1, reverse=True, inclusive=False)  # the sum of all likelier tokens
    total = above[:, :1] + ascending[:, :1]
    num_dropped = mx.minimum((above >= top_p * total).sum(axis=-1, keepdims=True), weights.shape[-1] - 1)
    return mx.take_along_axis(ascending, num_dropped, axis=-1)


def _invert_rows(weights: mx.array, uniforms: mx.array) -> mx.array:
    """`_invert` for [sequences, vocabulary] and [sequences, 1], as [sequences]."""
    num_blocks = -(-weights.shape[-1] // BLOCK)
    padding = num_blocks * BLOCK - weights.shape[-1]
    blocks = mx.pad(weights, [(0, 0), (0, padding)]).reshape(-1, num_blocks, BLOCK)
    block_ends = mx.cumsum(blocks.sum(axis=-1), axis=-1)
    targets = uniforms * block_ends[:, -1:]
    block = _first_above(block_ends, targets)
    before = mx.where(block > 0, mx.take_along_axis(block_ends, mx.maximum(block - 1, 0), axis=-1), 0)
    ends = mx.cumsum(mx.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0], axis=-1)
    return (block * BLOCK + _first_above(ends, targets - before))[:, 0]


def _first_above(ends: mx.array, targets: mx.array) -> mx.array:
    """`_first_index_above` for [sequences, values] and [sequences, 1], as [sequences, 1]."""
    at_most = (ends < ends[:, -1:]).sum(axis=-1, keepdims=True)
    return mx.minimum((ends <= targets).sum(axis=-1, keepdims=True), at_most)
