"""Robust DPO."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(supports_f_divergence=True, uses_margins=True)
def robust(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """Robust DPO: unbiased if labels are flipped at a known rate.

    Formula:
        [-(1 - e) log sigmoid(beta (r_w - r_l)) + e log sigmoid(-beta (r_w - r_l))] / (1 - 2 e); e = label_smoothing

    Paper:
        2403.00409 Chowdhury et al.

    When to use:
        The share of flipped labels is known: label_smoothing is that share

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        label_smoothing: share of pairs whose labels are flipped, below 0.5.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> robust(example_pairs(), beta=0.5, label_smoothing=0.1)
        array([0.411577, 1.03658], dtype=float32)
    """
    z = pairs.reward_margins(beta)
    clean, flipped = -(1 - label_smoothing) * log_sigmoid(z), -label_smoothing * log_sigmoid(-z)
    return (clean - flipped) / (1 - 2 * label_smoothing)
