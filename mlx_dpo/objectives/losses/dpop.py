"""DPO-Positive."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(uses_margins=True)
def dpop(pairs: PairLogps, *, beta: float = 0.1, dpop_lambda: float = 50.0) -> mx.array:
    """DPO-Positive: DPO with a penalty on chosen completions that become less likely than under the reference.

    Formula:
        -log sigmoid(beta (r_w - r_l - dpop_lambda max(0, -r_w)))

    Paper:
        2402.13228 Pal et al.

    When to use:
        The chosen completions become less likely in training, as with completions that differ by a few tokens

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        dpop_lambda: weight of the penalty.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> dpop(example_pairs(), beta=0.5, dpop_lambda=2.0)
        array([0.474077, 1.31326], dtype=float32)
    """
    penalty = mx.maximum(-pairs.chosen_logratios, 0)
    return -log_sigmoid(pairs.reward_margins(beta) - beta * dpop_lambda * penalty)
