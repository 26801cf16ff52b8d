"""The loss of a reward model."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import RewardKind, declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(rewards=RewardKind.HEAD, uses_reference=False, uses_margins=True)
def reward(pairs: PairLogps, *, center_rewards_coefficient: float = 0.0) -> mx.array:
    """Bradley-Terry loss of a reward model: a scalar head on the last token of a completion; TRL's RewardTrainer.

    Formula:
        -log sigmoid(R_w - R_l - m) + center_rewards_coefficient (R_w + R_l)^2; R = the head's output, m = the row's
        margin

    Paper:
        2203.02155 Ouyang et al., eq. 1 (Bradley and Terry 1952); margins: 2307.09288 Touvron et al., eq. 2; centering:
        2312.09244 Eisenstein et al.

    When to use:
        A reward model is wanted, to score or label completions or choose among them; it writes no text itself

    Args:
        pairs: the head's outputs in the place of log-probs; every array is [pairs].
        center_rewards_coefficient: weight of the square of a pair's summed rewards, which keeps rewards around 0.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> reward(example_pairs(), center_rewards_coefficient=0.01)
        array([24.01, 26.0101], dtype=float32)
    """
    chosen, rejected = pairs.chosen_logps, pairs.rejected_logps
    losses = -log_sigmoid(chosen - rejected - pairs.target_margins)
    return losses + center_rewards_coefficient * mx.square(chosen + rejected)
