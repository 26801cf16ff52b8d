"""DPO with an offset."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(needs_scores=True, uses_margins=True)
def odpo(pairs: PairLogps, *, beta: float = 0.1, odpo_alpha: float = 1.0) -> mx.array:
    """DPO with an offset by the scores of both completions, with the logarithm as its scaling function.

    Formula:
        -log sigmoid(beta (r_w - r_l) - odpo_alpha log(score_w - score_l))

    Paper:
        2402.10571 Amini et al., eq. 10

    When to use:
        Rows have scores: the larger the gap between two scores, the larger the margin that is trained for

    Args:
        pairs: log-probs of the batch, with `score_gaps`; every array is [pairs].
        beta: how closely the policy stays with the reference.
        odpo_alpha: weight of the offset.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> odpo(example_pairs(score_gaps=mx.array([1.0, 3.0])), beta=0.5)
        array([0.474077, 1.78275], dtype=float32)
    """
    return -log_sigmoid(pairs.reward_margins(beta) - odpo_alpha * mx.log(pairs.score_gaps))
