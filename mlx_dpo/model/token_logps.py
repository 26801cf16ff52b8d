"""Log-probabilities of tokens from hidden rows, with never more than a few rows' logits in memory.

A token's log-prob depends on its own row alone, so the gradient of the one with respect to the other, W[target] - p W
for a plain head, can be computed beside the log-prob while that row's logits exist: two products with the vocabulary
instead of three, and the backward pass only scales what is there.

mlx runs ahead of what it is asked for, so a loop over chunks in one lazy graph would hold all chunks' logits at once.
Each chunk is therefore evaluated before the next is begun.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

CHUNK_BYTES = 16 << 20  # of float32 logits

Logits = Callable[[mx.array], mx.array]


def log_softmax_at(logits: mx.array, targets: mx.array) -> mx.array:
    """log p(target) under a float32 log-softmax: [..., vocabulary] and [...] to [...], nats."""
    logits = logits.astype(mx.float32)
    at_target = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return at_target - mx.logsumexp(logits, axis=-1)


def token_logps(
    rows: mx.array, targets: mx.array, logits: Logits, vocabulary: int, *, slopes: bool
) -> tuple[mx.array, mx.array | None]:
    """log p(target) of each hidden row and, where asked for, its gradient with respect to the row; all evaluated.

    Args:
        rows: [rows, hidden].
        targets: [rows], token ids.
        logits: the model's head, [rows, hidden] to [rows, vocabulary].

    Returns:
        [rows], float32, nats; and [rows, hidden], in the rows' type, or None.
    """
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    logp_parts, slope_parts = [], []
    for start in range(0, rows.shape[0], size):
        part = slice(start, start + size)
        logp, *slope = _chunk(rows[part], targets[part], logits, slopes)
        mx.eval(logp, slope)
        logp_parts.append(logp)
        slope_parts += slope
    return mx.concatenate(logp_parts), mx.concatenate(slope_parts) if slopes else None


def _chunk(rows: mx.array, targets: mx.array, logits: Logits, slopes: bool) -> list[mx.array]:
    if not slopes:
        return [log_softmax_at(logits(rows), targets)]
    ones = mx.ones(rows.shape[0])  # each log-prob depends on its own row, so their sum's gradient is each one's
    (logp,), (slope,) = mx.vjp(lambda rows: log_softmax_at(logits(rows), targets), [rows], [ones])
    return [logp, slope]
