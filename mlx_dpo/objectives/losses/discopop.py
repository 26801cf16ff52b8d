"""DiscoPOP's log-ratio modulated loss."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(supports_f_divergence=True, uses_margins=True)
def discopop(pairs: PairLogps, *, beta: float = 0.1, discopop_tau: float = 0.05) -> mx.array:
    """DiscoPOP's log-ratio modulated loss: a mixture of the logistic and the exponential loss.

    Formula:
        -(1 - m) log sigmoid(z) + m exp(-z); z = beta (r_w - r_l), m = sigmoid(z / discopop_tau)

    Paper:
        2406.08414 Lu et al., eq. 5

    When to use:
        An alternative to sigmoid that was found by search. With a discopop_tau below 0.11 a pair that starts at a
        margin of 0 is pulled the wrong way, to a reward margin of -0.12: raise it if held-out accuracy falls

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        discopop_tau: temperature of the mixture.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> discopop(example_pairs(), beta=0.5)
        array([0.606525, 0.974108], dtype=float32)
    """
    z = pairs.reward_margins(beta)
    # m exp(-z) as one exponential: far below zero the product is tiny, but exp(-z) alone overflows.
    exponential = mx.exp(log_sigmoid(z / discopop_tau) - z)
    return -mx.sigmoid(-z / discopop_tau) * log_sigmoid(z) + exponential
