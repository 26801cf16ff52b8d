"""EXO for two completions."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(supports_f_divergence=True, uses_margins=True, positive_settings=("label_smoothing",))
def exo_pair(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> mx.array:
    """EXO for two completions: the KL of the policy's preference from the smoothed label's.

    Formula:
        q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e); q = sigmoid(beta (r_w - r_l)), e = label_smoothing

    Paper:
        2402.00856 Ji et al., eq. 16

    When to use:
        DPO spreads over many completions: the reverse KL seeks modes. label_smoothing is above 0

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        label_smoothing: probability that the label gives the rejected completion; above 0.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> exo_pair(example_pairs(), beta=0.5)
        array([1.94573, 3.63733], dtype=float32)
    """
    z = pairs.reward_margins(beta)
    log_chosen, log_rejected = mx.log1p(mx.array(-label_smoothing)), mx.log(mx.array(label_smoothing))
    return mx.sigmoid(z) * (log_sigmoid(z) - log_chosen) + mx.sigmoid(-z) * (log_sigmoid(-z) - log_rejected)
