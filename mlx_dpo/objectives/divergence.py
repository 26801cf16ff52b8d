"""f-divergences in place of DPO's reverse KL: what a log-ratio is worth as a reward.

f'(t) at t = pi / pi_ref, Wang et al. 2023 (arXiv 2309.16240), eq. 8; each is 0 at t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from mlx_dpo.objectives.paired import log_sigmoid

LARGEST_EXPONENT = 80.0  # exp of it is finite in float32, and so is a multiple


def _exp(x: mx.array) -> mx.array:
    return mx.exp(mx.minimum(x, LARGEST_EXPONENT))


def score_function(divergence: str, alpha: float) -> Callable[[mx.array], mx.array]:
    """From log-ratios to rewards without beta.

    Args:
        divergence: a name of `TrainConfig.f_divergence`.
        alpha: of "alpha"; 1 is the reverse KL, towards 0 it is the forward KL.
    """
    if divergence == "forward_kl":
        return lambda r: 1 - _exp(-r)
    if divergence == "js":
        return lambda r: math.log(2) + log_sigmoid(r)
    if divergence == "alpha" and abs(alpha - 1) >= 1e-6:
        return lambda r: (_exp((alpha - 1) * r) - 1) / (alpha - 1)
    return lambda r: r
