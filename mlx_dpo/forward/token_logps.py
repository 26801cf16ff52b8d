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

from mlx_dpo.forward.device import numpy_computes
from mlx_dpo.forward.softmax import exp, log_softmax, minus_one_hot, softmax
from mlx_dpo.utils.stop_flag import check_stop

MAX_CHUNK_TOKENS = 512  # products of more tokens with the head's weights are no faster
MIN_CHUNK_TOKENS = 64  # fewer: each chunk reads all of the head's weights for little arithmetic
CHUNK_SHARE = 1 / 64  # of the memory that may be used, for the logits of a chunk and their gradients
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


def head_chunk_tokens(vocab_size: int, usable_bytes: int) -> int:
    """Choose how many tokens' logits are in memory at a time.

    A large vocabulary makes logits large, but its weights also cost the most to read, twice for each chunk. So there is
    a floor in tokens, and a ceiling in bytes that grows with the memory.

    Args:
        vocab_size: number of logits.
        usable_bytes: memory that the process may use.
    """
    affordable = int(CHUNK_SHARE * usable_bytes) // chunk_bytes(vocab_size, 1)
    return min(MAX_CHUNK_TOKENS, max(MIN_CHUNK_TOKENS, affordable))


def chunk_bytes(vocab_size: int, chunk_tokens: int) -> int:
    """Bytes of a chunk's logits and of their gradients, which replace them where numpy computes."""
    return (1 if numpy_computes() else 2) * 4 * vocab_size * chunk_tokens


def token_logps(
    hidden_states: mx.array,
    targets: mx.array,
    logits: HeadFunction,
    chunk_tokens: int,
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
        chunk_tokens: most tokens whose logits are in memory at a time; see `head_chunk_tokens`.
        gradients: whether to compute gradients with respect to the hidden states.
        collision_logps: whether to compute log sum(p^2).
        reference_hidden_states: [tokens, hidden], of another policy with the same head, to compute the KL to it.
    """
    num_tokens = hidden_states.shape[0]
    num_chunks = -(-num_tokens // chunk_tokens)
    size = -(-num_tokens // num_chunks)  # of equal size: a short last chunk would cost as much as a full one
    chunks = []
    for start in range(0, num_tokens, size):
        check_stop()
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
    """`token_logps` of a chunk; targets: [tokens, 1]."""
    terms = {}
    p = softmax(_new_logits(logits, hidden))
    if collision_logps:
        terms["collision_logps"] = mx.log(mx.square(p).sum(axis=-1))
    if reference is not None:
        terms |= _kl_terms(hidden, p, reference, logits, gradients)
    logp = mx.log(mx.take_along_axis(p, targets, axis=-1))
    mx.eval(logp, terms)
    if gradients:
        check_stop()  # one product with the head of a real model takes a CPU up to a second
        terms["logp_grads"] = -_pull_back(logits, hidden, minus_one_hot(p, targets))
    del p
    mx.eval(terms)
    if mx.any(logp < MIN_SOFTMAX_LOGP).item():
        logp = mx.take_along_axis(log_softmax(_new_logits(logits, hidden)), targets, axis=-1)
    return {"logps": logp[:, 0], **terms}


def _kl_terms(
    hidden: mx.array, p: mx.array, reference: mx.array, logits: HeadFunction, gradients: bool
) -> dict[str, mx.array]:
    """KL(q || p), where q is the reference's distribution; its gradient with respect to the logits is p - q."""
    check_stop()  # between products with the head, as in `_chunk`
    log_q = log_softmax(_new_logits(logits, reference))
    q = exp(log_q)
    check_stop()
    terms = {"kls": (q * (log_q - log_softmax(_new_logits(logits, hidden)))).sum(axis=-1)}
    return terms | {"kl_grads": _pull_back(logits, hidden, p - q)} if gradients else terms


def _new_logits(logits: HeadFunction, hidden: mx.array) -> mx.array:
    """Logits in float32 that may be overwritten."""
    values = logits(hidden)
    if values is hidden:  # a model that is not split into body and head
        values = mx.array(values)
    return values.astype(mx.float32)


def _pull_back(logits: HeadFunction, hidden: mx.array, logit_grads: mx.array) -> mx.array:
    """Gradients with respect to the hidden states, from those with respect to the logits."""
    return mx.vjp(lambda hidden: logits(hidden).astype(mx.float32), [hidden], [logit_grads])[1][0]
