"""Softmax over the vocabulary: mlx's on a GPU, numpy's on the CPU.

Exponentials are what a large vocabulary costs beside its products. On the CPU mlx computes them one at a time, numpy as
many as a vector register holds: over twenty times faster on a processor with AVX-512. Numpy also works in place, in
mlx's own buffer, so that a chunk's logits, probabilities and gradients are one array there.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_dpo.forward.device import numpy_computes


def softmax(logits: mx.array) -> mx.array:
    """Probabilities, [tokens, vocabulary] float32. On the CPU they replace the logits, which must not be used again."""
    if not numpy_computes():
        return mx.softmax(logits, axis=-1)
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, as in mlx
        for row in _writable(logits):
            row -= row.max()
            np.exp(row, out=row)
            row *= np.float32(1) / row.sum()
    return logits


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities, [tokens, vocabulary] float32; replaces the logits as `softmax` does."""
    if not numpy_computes():
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        for row in _writable(logits):
            row -= row.max()
            row -= np.log(np.exp(row).sum())
    return logits


def exp(values: mx.array) -> mx.array:
    """Exponentials, in a new array."""
    return mx.array(np.exp(np.array(values, copy=False))) if numpy_computes() else mx.exp(values)


def minus_one_hot(p: mx.array, targets: mx.array) -> mx.array:
    """Compute p - onehot(targets), the gradient of -log p(target) with respect to the logits.

    Args:
        p: [tokens, vocabulary]; on the CPU it is changed in place.
        targets: [tokens, 1], token ids.
    """
    if not numpy_computes():
        return mx.put_along_axis(p, targets, mx.take_along_axis(p, targets, axis=-1) - 1, axis=-1)
    rows = _writable(p)
    rows[np.arange(len(rows)), np.array(targets)[:, 0]] -= 1
    return p


def _writable(array: mx.array) -> np.ndarray:
    mx.eval(array)
    return np.array(array, copy=False)
