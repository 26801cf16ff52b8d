"""Length-normalized DPO."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(supports_f_divergence=True)
def sigmoid_norm(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Length-normalized DPO, the loss of Tülu 3.

    Formula:
        -log sigmoid(beta (r_w / |y_w| - r_l / |y_l|))

    Paper:
        2411.15124 Lambert et al. (Tülu 3)

    When to use:
        Answers differ much in length. beta is per token: 5 to 10

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: scale of the reward per token.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> sigmoid_norm(example_pairs(), beta=5.0)
        array([0.209145, 2.8381], dtype=float32)
    """
    return -log_sigmoid(beta * pairs.mean_margins)
