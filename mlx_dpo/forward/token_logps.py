"""Log-probabilities of tokens from hidden rows, with never more than a few rows' logits in memory.

A token's log-prob depends on its own row alone, so the gradient of the one with respect to the other, W[target] - p W
for a plain head, can be computed beside the log-prob while that row's logits exist: two products with the vocabulary
instead of three, and the backward pass only scales what is there.

mlx runs ahead of what it is asked for, so a loop over chunks in one lazy graph would hold all chunks' logits at once.
Each chunk is therefore evaluated before the next is begun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

CHUNK_BYTES = 8 << 20  # of float32 logits
MIN_SOFTMAX_LOGP = -80.0  # nats, below which a float32 probability loses digits

HeadFunction = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class TokenTerms:
    """What is known of each token, evaluated; None where it was not asked for.

    Attributes:
        logps: [rows], float32, nats: log p(target).
        slopes: [rows, hidden], in the rows' type: the gradient of that with respect to the hidden row.
        collisions: [rows], float32, nats: log sum(p^2), over the vocabulary.
        kls: [rows], float32, nats: KL(q || p) of the whole distributions, q being another policy's.
        kl_slopes: [rows, hidden]: the gradient of that.
    """

    logps: mx.array
    logp_grads: mx.array | None = None
    collision_logps: mx.array | None = None
    kls: mx.array | None = None
    kl_grads: mx.array | None = None


def token_logps(
    hidden_states: mx.array,
    targets: mx.array,
    logits: HeadFunction,
    vocab_size: int,
    *,
    gradients: bool,
    collision_logps: bool = False,
    reference_hidden_states: mx.array | None = None,
) -> TokenTerms:
    """log p(target) of each hidden row and, where asked for, more.

    Args:
        rows: [rows, hidden].
        targets: [rows], token ids.
        logits: the model's head, [rows, hidden] to [rows, vocabulary].
        slopes, collisions: whether these terms are wanted.
        others: [rows, hidden], another policy's hidden rows under the same head; then its KL to this one is wanted.
    """
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    chunks = []
    for start in range(0, hidden_states.shape[0], size):
        part = slice(start, start + size)
        other = None if reference_hidden_states is None else reference_hidden_states[part]
        chunks.append(_chunk(hidden_states[part], targets[part, None], logits, gradients, collision_logps, other))
    return TokenTerms(**{name: mx.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def _chunk(
    rows: mx.array, targets: mx.array, logits: HeadFunction, slopes: bool, collisions: bool, other: mx.array | None
) -> dict[str, mx.array]:
    """As above; targets: [rows, 1]. The exponentials are what takes time, and a softmax takes each of them once."""
    found = {}
    p = mx.softmax(logits(rows).astype(mx.float32), axis=-1)
    if collisions:
        found["collision_logps"] = mx.log(mx.square(p).sum(axis=-1))
    if other is not None:
        found |= _divergence(rows, p, other, logits, slopes)
        mx.eval(found)
    at_target = mx.take_along_axis(p, targets, axis=-1)
    logp = mx.log(at_target)
    if slopes:
        away = mx.put_along_axis(p, targets, at_target - 1, axis=-1)  # from the target: p, less one there
        found["logp_grads"] = -_pulled_back(logits, rows, away)
    del p
    mx.eval(logp, found)
    if mx.any(logp < MIN_SOFTMAX_LOGP).item():
        logp = _faint(logits(rows), targets)
    return {"logps": logp[:, 0], **found}


def _divergence(
    rows: mx.array, p: mx.array, other: mx.array, logits: HeadFunction, slopes: bool
) -> dict[str, mx.array]:
    """KL(q || p), q being the other rows' distribution; its gradient with respect to the logits is p - q."""
    log_q = _log_softmax(logits(other))
    q = mx.exp(log_q)
    found = {"kls": (q * (log_q - _log_softmax(logits(rows)))).sum(axis=-1)}
    return found | {"kl_grads": _pulled_back(logits, rows, p - q)} if slopes else found


def _pulled_back(logits: HeadFunction, rows: mx.array, slopes: mx.array) -> mx.array:
    """Slopes of the logits as slopes of the hidden rows."""
    return mx.vjp(lambda rows: logits(rows).astype(mx.float32), [rows], [slopes])[1][0]


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _faint(logits: mx.array, targets: mx.array) -> mx.array:
    """The log-probs of targets from the logits themselves."""
    return mx.take_along_axis(_log_softmax(logits), targets, axis=-1)
