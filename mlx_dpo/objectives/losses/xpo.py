"""Exploratory preference optimization."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import Opponent, declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(uses_margins=True, opponent=Opponent.REFERENCE)
def xpo(pairs: PairLogps, *, beta: float = 0.1, xpo_alpha: float = 1e-5) -> mx.array:
    """XPO: DPO on an answer of the policy and one of the reference, with a bonus for leaving the reference's answers.

    Formula:
        -log sigmoid(beta (r_w - r_l)) + xpo_alpha log pi(y_ref); y_ref: the answer sampled from the reference

    Paper:
        2405.21046 Xie et al., algorithm 1

    When to use:
        With --on-policy only, if the judge prefers answers that the model seldom gives

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        xpo_alpha: weight of the bonus.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> xpo(example_pairs(), beta=0.5, xpo_alpha=0.01)
        array([0.174077, 0.674077], dtype=float32)
    """
    reference_sample = mx.where(pairs.chosen_is_reference > 0, pairs.chosen_logps, pairs.rejected_logps)
    return -log_sigmoid(pairs.reward_margins(beta)) + xpo_alpha * reference_sample
