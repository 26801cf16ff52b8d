"""SimPO."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import RewardKind, declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import smoothed_log_loss


@declare_loss(rewards=RewardKind.MEAN_LOGP, uses_reference=False, uses_margins=True)
def simpo(pairs: PairLogps, *, beta: float = 2.0, simpo_gamma: float = 0.5, label_smoothing: float = 0.0) -> mx.array:
    """SimPO; TRL's CPOTrainer has it as loss_type simpo with cpo_alpha 0.

    Formula:
        -(1 - e) log sigmoid(z) - e log sigmoid(-z); z = beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) -
        simpo_gamma, e = label_smoothing

    Paper:
        2405.14734 Meng et al., eq. 6

    When to use:
        No reference is wanted, and length is not to count. beta 2 to 10, simpo_gamma a quarter to half of it

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: scale of the reward per token.
        simpo_gamma: reward margin to reach.
        label_smoothing: assumed share of pairs whose labels are flipped.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> simpo(example_pairs())
        array([4.53989e-05, 35.8333], dtype=float32)
    """
    margins = pairs.chosen_mean_logps - pairs.rejected_mean_logps
    return smoothed_log_loss(beta * margins - simpo_gamma - pairs.target_margins, label_smoothing)
