"""TR-DPO's soft update of the reference (Gorbatovski et al. 2024, arXiv 2404.09656): interpolate two LoRA adapters.

The weight updates A B are interpolated, not the factors: the As are concatenated by columns and the scaled Bs by rows,
so that their product is the interpolated update. Its rank is the sum of both ranks; once it has grown
`MAX_RANK_GROWTH`-fold it is truncated by SVD, to the singular values that float32 can represent.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_dpo.adapters.spec import Tensors

MAX_RANK_GROWTH = 4  # rank of a factor, in multiples of its first rank, above which it is truncated
SINGULAR_VALUE_CUTOFF = 1e-7  # relative to the largest singular value: below float32's precision


def interpolate_adapters(policy: Tensors, reference: Tensors, alpha: float) -> Tensors:
    """Return alpha * policy + (1 - alpha) * reference, mixed in weight space and evaluated.

    Args:
        policy: the policy's adapter tensors, by name.
        reference: the reference's, with the same names; LoRA ranks may differ.
        alpha: weight of the policy, from 0 to 1.

    Returns:
        Adapter tensors, by name. The rank of a LoRA factor is at most `MAX_RANK_GROWTH` times the policy's, or what
        its singular values need.
    """
    if alpha == 1:
        return dict(policy)
    tensors = {}
    for name, ours in policy.items():
        theirs = reference[name]
        if name.endswith(".lora_a"):
            below = name[: -len("a")] + "b"
            b = mx.concatenate([alpha * policy[below], (1 - alpha) * reference[below]], axis=-2)
            tensors[name], tensors[below] = _truncate_rank(mx.concatenate([ours, theirs], axis=-1), b, ours.shape[-1])
        elif not name.endswith(".lora_b"):
            tensors[name] = alpha * ours + (1 - alpha) * theirs
    mx.eval(tensors)
    return tensors


def _truncate_rank(a: mx.array, b: mx.array, rank: int) -> tuple[mx.array, mx.array]:
    """The same product with a lower rank, if r is large. a: [..., inputs, r], b: [..., r, outputs]."""
    if a.shape[-1] <= MAX_RANK_GROWTH * rank:
        return a, b
    left, r_a = np.linalg.qr(_float64(a))
    right, r_b = np.linalg.qr(np.swapaxes(_float64(b), -1, -2))
    u, s, v = np.linalg.svd(r_a @ np.swapaxes(r_b, -1, -2))
    kept = max(1, int((s > SINGULAR_VALUE_CUTOFF * s.max(axis=-1, keepdims=True)).sum(axis=-1).max()))
    new_a = left @ (u[..., :kept] * s[..., None, :kept])
    new_b = v[..., :kept, :] @ np.swapaxes(right, -1, -2)
    return mx.array(new_a.astype(np.float32)).astype(a.dtype), mx.array(new_b.astype(np.float32)).astype(b.dtype)


def _float64(tensor: mx.array) -> np.ndarray:
    return np.array(tensor.astype(mx.float32)).astype(np.float64)
