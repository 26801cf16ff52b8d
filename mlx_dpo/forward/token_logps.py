"""Log-probabilities of tokens from hidden states, with the logits of only a few positions in memory at a time.

A token's log-prob depends on the hidden state at its own position alone. Its gradient, W[target] - p W for a plain
head, is therefore computed together with the log-prob, while the logits of that position exist: two products with the
vocabulary instead of three, and the backward pass only scales the gradients.

mlx evaluates lazily, so a loop over chunks in one graph would hold the logits of all chunks at once. Each chunk is
therefore evaluated before the next one is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

CHUNK_BYTES = 8 << 20  # float32 logits in memory at a time
MIN_SOFTMAX_LOGP = -80.0  # nats; below this a float32 probability loses digits

HeadFunction = Callable[[mx.array], mx.array]


@dataclass(frozen=True)
class TokenTerms:
    """Log-probabilities and related quantities of tokens, evaluated; None where not requested.

    Attributes:
        logps: [tokens] float32, nats: log p(target).
        logp_grads: [tokens, hidden], in the dtype of the hidden states: gradient of `logps`.
        collision_logps: [tokens] float32, nats: log sum(p^2) over the vocabulary.
        kls: [tokens] float32, nats: KL(q || p) over the vocabulary, where q is the reference's distribution.
        kl_grads: [tokens, hidden]: gradient of `kls`.
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
    """Compute log p(target) from hidden states and, on request, gradients, collision log-probs and KLs.

    Args:
        hidden_states: [tokens, hidden].
        targets: [tokens], token ids.
        logits: the model's head, [tokens, hidden] to [tokens, vocabulary].
        vocab_size: number of logits.
        gradients: whether to compute gradients with respect to the hidden states.
        collision_logps: whether to compute log sum(p^2).
        reference_hidden_states: [tokens, hidden], of another policy with the same head, to compute the KL to it.
    """
    size = max(1, CHUNK_BYTES // (4 * vocab_size))
    chunks = []
    for start in range(0, hidden_states.shape[0], size):
        part = slice(start, start + size)
        reference = None if reference_hidden_states is None else reference_hidden_states[part]
        chunks.append(_chunk(hidden_states[part], targets[part, None], logits, gradients, collision_logps, reference))
    return TokenTerms(**{name: mx.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]})


def _chunk(
    hidden: mx.array,
    targets: mx.array,
    logits: HeadFunction,
    gradients: bool,
    collision_logps: bool,
    reference: mx.array | None,
) -> dict[str, mx.array]:
    """`token_logps` of a chunk; targets: [tokens, 1]. Most time goes to exponentials; softmax computes each once."""
    terms = {}
    p = mx.softmax(logits(hidden).astype(mx.float32), axis=-1)
    if collision_logps:
        terms["collision_logps"] = mx.log(mx.square(p).sum(axis=-1))
    if reference is not None:
        terms |= _kl_terms(hidden, p, reference, logits, gradients)
        mx.eval(terms)
    at_target = mx.take_along_axis(p, targets, axis=-1)
    logp = mx.log(at_target)
    if gradients:
        negative_grad = mx.put_along_axis(p, targets, at_target - 1, axis=-1)  # of logp by the logits: p - onehot
        terms["logp_grads"] = -_pull_back(logits, hidden, negative_grad)
    del p
    mx.eval(logp, terms)
    if mx.any(logp < MIN_SOFTMAX_LOGP).item():
        logp = mx.take_along_axis(_log_softmax(logits(hidden)), targets, axis=-1)
    return {"logps": logp[:, 0], **terms}


def _kl_terms(
    hidden: mx.array, p: mx.array, reference: mx.array, logits: HeadFunction, gradients: bool
) -> dict[str, mx.array]:
    """KL(q || p), where q is the reference's distribution; its gradient with respect to the logits is p - q."""
    log_q = _log_softmax(logits(reference))
    q = mx.exp(log_q)
    terms = {"kls": (q * (log_q - _log_softmax(logits(hidden)))).sum(axis=-1)}
    return terms | {"kl_grads": _pull_back(logits, hidden, p - q)} if gradients else terms


def _pull_back(logits: HeadFunction, hidden: mx.array, logit_grads: mx.array) -> mx.array:
    """Gradients with respect to the hidden states, from those with respect to the logits."""
    return mx.vjp(lambda hidden: logits(hidden).astype(mx.float32), [hidden], [logit_grads])[1][0]


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
