"""Log-probabilities of tokens from hidden rows, with never more than a few rows' logits in memory.

A token's log-prob depends on its own row alone, so the gradient of the one with respect to the other, W[target] - p W
for a plain head, can be computed beside the log-prob while that row's logits exist: two products with the vocabulary
instead of three, and the backward pass only scales what is there.

mlx runs ahead of what it is asked for, so a loop over chunks in one lazy graph would hold all chunks' logits at once.
Each chunk is therefore evaluated before the next is begun, on rows taken out of the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import numpy as np

CHUNK_BYTES = 16 << 20  # of float32 logits

Logits = Callable[[mx.array], mx.array]


def log_softmax_at(logits: mx.array, targets: mx.array) -> mx.array:
    """log p(target) under a float32 log-softmax: [..., vocabulary] and [...] to [...], nats."""
    logits = logits.astype(mx.float32)
    at_target = mx.take_along_axis(logits, mx.stop_gradient(targets)[..., None], axis=-1)[..., 0]
    return at_target - mx.logsumexp(logits, axis=-1)


def token_logps(rows: mx.array, targets: mx.array, logits: Logits, vocabulary: int, gradient: bool) -> mx.array:
    """log p(target) of each hidden row.

    Args:
        rows: [rows, hidden].
        targets: [rows], token ids.
        logits: the model's head, [rows, hidden] to [rows, vocabulary].
        gradient: whether it will be differentiated with respect to `rows`.

    Returns:
        [rows], float32, nats.
    """
    chunk = max(1, CHUNK_BYTES // (4 * vocabulary))
    outside = _out_of_the_trace(rows) if gradient else rows
    logps, slopes = [], []
    for start in range(0, rows.shape[0], chunk):
        part = slice(start, start + chunk)
        logp, slope = _chunk(outside[part], targets[part], logits, gradient)
        logps.append(logp)
        slopes.append(slope)
    logp = mx.concatenate(logps)
    if not gradient:
        return logp
    return cast(mx.array, _with_slope(rows, logp, mx.concatenate(slopes)))


def _chunk(rows: mx.array, targets: mx.array, logits: Logits, gradient: bool) -> tuple[mx.array, mx.array]:
    """Log-probs of some rows and, where asked for, their gradients with respect to the rows; both evaluated."""
    if gradient:
        ones = mx.ones(rows.shape[0])
        (logp,), (slope,) = mx.vjp(lambda rows: log_softmax_at(logits(rows), targets), [rows], [ones])
    else:
        logp, slope = log_softmax_at(logits(rows), targets), mx.array(())
    mx.eval(logp, slope)
    return logp, slope


def _out_of_the_trace(rows: mx.array) -> mx.array:
    """The same numbers as a new array; evaluating a traced one would keep all that was computed from it."""
    values = np.array(mx.stop_gradient(rows).astype(mx.float32))
    return mx.array(values).astype(rows.dtype)


@mx.custom_function
def _with_slope(rows: mx.array, logp: mx.array, slope: mx.array) -> mx.array:
    """`logp`, whose gradient with respect to `rows` is `slope`."""
    return logp + 0


@_with_slope.vjp
def _with_slope_vjp(
    primals: list[mx.array], cotangent: mx.array, output: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    _, logp, slope = primals
    return cotangent[:, None].astype(slope.dtype) * slope, mx.zeros_like(logp), mx.zeros_like(slope)
