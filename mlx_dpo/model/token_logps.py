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

CHUNK_BYTES = 8 << 20  # of float32 logits
FAINT = -80.0  # nats, below which a float32 probability loses digits

Logits = Callable[[mx.array], mx.array]


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
        logp, *slope = _chunk(rows[part], targets[part, None], logits, slopes)
        logp_parts.append(logp)
        slope_parts += slope
    return mx.concatenate(logp_parts), mx.concatenate(slope_parts) if slopes else None


def _chunk(rows: mx.array, targets: mx.array, logits: Logits, slopes: bool) -> list[mx.array]:
    """As above; targets: [rows, 1]. The exponentials are what takes time, and a softmax takes each of them once."""
    p = mx.softmax(logits(rows).astype(mx.float32), axis=-1)
    at_target = mx.take_along_axis(p, targets, axis=-1)
    logp = mx.log(at_target)
    wanted = [logp]
    if slopes:
        away = mx.put_along_axis(p, targets, at_target - 1, axis=-1)  # from the target: p, less one there
        _, (slope,) = mx.vjp(lambda rows: logits(rows).astype(mx.float32), [rows], [away])
        wanted.append(-slope)
    del p
    mx.eval(wanted)
    if mx.any(logp < FAINT).item():
        wanted[0] = _faint(logits(rows), targets)
    return [wanted[0][:, 0], *wanted[1:]]


def _faint(logits: mx.array, targets: mx.array) -> mx.array:
    """The same from the logits themselves."""
    logits = logits.astype(mx.float32)
    return mx.take_along_axis(logits, targets, axis=-1) - mx.logsumexp(logits, axis=-1, keepdims=True)
