"""Contrastive preference optimization."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import RewardKind, declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import chosen_nll, smoothed_log_loss


@declare_loss(rewards=RewardKind.LOGP, uses_reference=False, uses_margins=True)
def cpo(pairs: PairLogps, *, beta: float = 0.1, cpo_alpha: float = 1.0, label_smoothing: float = 0.0) -> mx.array:
    """Contrastive preference optimization.

    Formula:
        -(1 - e) log sigmoid(z) - e log sigmoid(-z) - cpo_alpha log pi(y_w) / mean |y_w| of the batch;
        z = beta (log pi(y_w) - log pi(y_l)), e = label_smoothing

    Paper:
        2401.08417 Xu et al.

    When to use:
        No reference is wanted, and the chosen completions are worth imitating (translation)

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: scale of the difference of log-probs.
        cpo_alpha: weight of the chosen completions' negative log-likelihood.
        label_smoothing: assumed share of pairs whose labels are flipped.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> cpo(example_pairs())
        array([7.88734, 8.74115], dtype=float32)
    """
    z = beta * (pairs.chosen_logps - pairs.rejected_logps) - pairs.target_margins
    return smoothed_log_loss(z, label_smoothing) + cpo_alpha * chosen_nll(pairs)
