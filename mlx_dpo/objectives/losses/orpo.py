"""Odds ratio preference optimization."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import RewardKind, declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import chosen_nll, log_sigmoid

MAX_LOGP = -1e-6  # nats per token; a completion with a higher log-prob counts as certain, as its odds would be infinite


@declare_loss(rewards=RewardKind.MEAN_LOGP, uses_reference=False)
def orpo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """ORPO; likelihoods are of the completions alone.

    TRL's ORPOTrainer includes the prompt's tokens in the first term.

    Formula:
        -log pi(y_w) / mean |y_w| of the batch - beta log sigmoid(log odds(y_w) - log odds(y_l));
        odds = p / (1 - p), log p = log pi(y) / |y|

    Paper:
        2403.07691 Hong et al., eq. 6 and 7

    When to use:
        SFT and preferences in one stage, from a base model. beta is its lambda

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: the paper's lambda, weight of the odds ratio.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> orpo(example_pairs())
        array([7.60052, 10.1703], dtype=float32)
    """
    log_odds_ratio = log_odds(pairs.chosen_mean_logps) - log_odds(pairs.rejected_mean_logps)
    return chosen_nll(pairs) - beta * log_sigmoid(log_odds_ratio)


def log_odds(logp: mx.array) -> mx.array:
    """log(p / (1 - p)) of log p, any shape; finite at 0, too."""
    logp = mx.minimum(logp, MAX_LOGP)
    # For p above a half, 1 - p loses its digits to rounding, and expm1 keeps them; both branches are computed, so each
    # is given values it can take.
    likely = logp > -0.6931
    near, far = mx.where(likely, logp, -1), mx.where(likely, -1, logp)
    return logp - mx.where(likely, mx.log(-mx.expm1(near)), mx.log1p(-mx.exp(far)))
