"""The hinge loss of SLiC on log-ratios."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps


@declare_loss(supports_f_divergence=True, uses_margins=True)
def hinge(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """SLiC's hinge loss on log-ratios, as in RSO.

    Formula:
        max(0, 1 - beta (r_w - r_l))

    Paper:
        2305.10425 Zhao et al. (SLiC); 2309.06657 Liu et al.

    When to use:
        A pair should stop contributing once its margin is 1 / beta

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> hinge(example_pairs(), beta=0.5)
        array([0.5, 1.5], dtype=float32)
    """
    return mx.maximum(1 - pairs.reward_margins(beta), 0)
