"""A policy between two others: TR-DPO's soft update of the reference, Gorbatovski et al. 2024 (arXiv 2404.09656).

Weights are mixed, not the factors they are made of: a LoRA layer's update is A B, and the mixture of two updates is the
product of both As side by side and both Bs, scaled, one above the other. Its rank is the sum of theirs, and is brought
down again to what there is in it.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_dpo.adapters.spec import Tensors

MAX_RANK_GROWTH = 4  # times its first rank that a factor may become before it is brought down
SINGULAR_VALUE_CUTOFF = 1e-7  # of the largest singular value: what float32 can't hold beside it


def interpolate_adapters(policy: Tensors, reference: Tensors, alpha: float) -> Tensors:
    """The tensors of `share` times the policy and 1 - `share` times the reference, evaluated."""
    if alpha == 1:
        return dict(policy)
    tensors = {}
    for name, ours in policy.items():
        theirs = reference[name]
        if name.endswith(".lora_a"):
            below = name[: -len("a")] + "b"
            b = mx.concatenate([alpha * policy[below], (1 - alpha) * reference[below]], axis=-2)
            tensors[name], tensors[below] = _brought_down(mx.concatenate([ours, theirs], axis=-1), b, ours.shape[-1])
        elif not name.endswith(".lora_b"):
            tensors[name] = alpha * ours + (1 - alpha) * theirs
    mx.eval(tensors)
    return tensors


def _brought_down(a: mx.array, b: mx.array, rank: int) -> tuple[mx.array, mx.array]:
    """The same product, of fewer columns where there are very many. a: [..., inputs, r], b: [..., r, outputs]."""
    if a.shape[-1] <= MAX_RANK_GROWTH * rank:
        return a, b
    left, of_a = np.linalg.qr(_float64(a))
    right, of_b = np.linalg.qr(np.swapaxes(_float64(b), -1, -2))
    u, s, v = np.linalg.svd(of_a @ np.swapaxes(of_b, -1, -2))
    kept = max(1, int((s > SINGULAR_VALUE_CUTOFF * s.max(axis=-1, keepdims=True)).sum(axis=-1).max()))
    down_a = left @ (u[..., :kept] * s[..., None, :kept])
    down_b = v[..., :kept, :] @ np.swapaxes(right, -1, -2)
    return mx.array(down_a.astype(np.float32)).astype(a.dtype), mx.array(down_b.astype(np.float32)).astype(b.dtype)


def _float64(tensor: mx.array) -> np.ndarray:
    return np.array(tensor.astype(mx.float32)).astype(np.float64)
