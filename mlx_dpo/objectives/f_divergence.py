"""f-divergences in place of DPO's reverse KL."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from mlx_dpo.objectives.loss_math import log_sigmoid

MAX_EXPONENT = 80.0  # exp of it, and a multiple of that, is finite in float32


def score_function(divergence: str, alpha: float) -> Callable[[mx.array], mx.array]:
    """The function from log-ratios, of any shape, to rewards without beta.

    It is f'(t) at t = pi / pi_ref, Wang et al. 2023 (arXiv 2309.16240), eq. 8, shifted to 0 at t = 1.

    Args:
        divergence: a value of `TrainConfig.f_divergence`.
        alpha: for the divergence "alpha"; 1 is the reverse KL, and near 0 is the forward KL.
    """
    if divergence == "forward_kl":
        return lambda r: 1 - _exp(-r)
    if divergence == "js":
        return lambda r: math.log(2) + log_sigmoid(r)
    if divergence == "alpha" and abs(alpha - 1) >= 1e-6:
        return lambda r: (_exp((alpha - 1) * r) - 1) / (alpha - 1)
    return lambda r: r


def _exp(x: mx.array) -> mx.array:
    return mx.exp(mx.minimum(x, MAX_EXPONENT))
