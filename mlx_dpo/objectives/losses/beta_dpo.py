"""DPO with a beta for each batch."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import LossState, PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid

MIN_BETA = 1e-3


def update_mean_margin(
    state: LossState, pairs: PairLogps, *, beta: float, beta_dpo_momentum: float, **_: Any
) -> LossState:
    """The moving mean of the reward margin over batches, 0 before the first."""
    mean = state[0] if state else 0.0
    return (beta_dpo_momentum * mean + (1 - beta_dpo_momentum) * float((beta * pairs.margins).mean()),)


@declare_loss(whole_batch=True, uses_margins=True, next_state=update_mean_margin)
def beta_dpo(
    pairs: PairLogps, *, beta: float = 0.1, beta_dpo_alpha: float = 0.6, beta_dpo_momentum: float = 0.9
) -> mx.array:
    """Beta-DPO: a beta for each batch, without a gradient through it. The paper's filtering of pairs is left out.

    Formula:
        -log sigmoid(b (r_w - r_l)); b = beta (1 + beta_dpo_alpha (m - M)), at least 0.001; m = mean of
        beta (r_w - r_l) over the batch, M = its moving mean, of which beta_dpo_momentum is kept in each step

    Paper:
        2407.08639 Wu et al., eq. 6 and 9

    When to use:
        Pairs are of mixed quality: batches with large margins stay closer to the reference

    Args:
        pairs: log-probs of a whole optimizer batch; every array is [pairs]. `state` holds the moving mean.
        beta: how closely the policy stays with the reference, on average.
        beta_dpo_alpha: how strongly beta follows the batch's margin.
        beta_dpo_momentum: share of the moving mean kept in each step; read by `update_mean_margin`.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> beta_dpo(example_pairs(), beta=0.5)
        array([0.474077, 0.974077], dtype=float32)
    """
    mean_margin = pairs.state[0] if pairs.state else 0.0
    batch_margin = mx.stop_gradient(beta * pairs.margins).mean()
    batch_beta = mx.maximum(beta * (1 + beta_dpo_alpha * (batch_margin - mean_margin)), MIN_BETA)
    return -log_sigmoid(batch_beta * pairs.margins - pairs.target_margins)
