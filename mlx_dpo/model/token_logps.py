"""Log-probabilities of tokens from logits."""

from __future__ import annotations

import mlx.core as mx


def token_logps(logits: mx.array, targets: mx.array) -> mx.array:
    """log p(target) under a float32 log-softmax.

    Args:
        logits: [..., vocabulary], any float type.
        targets: [...], token ids.

    Returns:
        [...], float32, nats.
    """
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, mx.stop_gradient(targets)[..., None], axis=-1)[..., 0]
    return chosen - mx.logsumexp(logits, axis=-1)
