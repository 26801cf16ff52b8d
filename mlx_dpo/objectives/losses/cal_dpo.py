"""Calibrated DPO."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss()
def cal_dpo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Cal-DPO: DPO whose rewards are calibrated to +-1/2.

    Formula:
        -log sigmoid(r_w - r_l) + (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2

    Paper:
        2412.14516 Xiao et al.

    When to use:
        Rewards should have an absolute scale, and the chosen completions should become more likely

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: the log-ratios are drawn to 1 / (2 beta) and -1 / (2 beta).

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> cal_dpo(example_pairs(), beta=0.5)
        array([0.813262, 5.81326], dtype=float32)
    """
    calibration = (pairs.chosen_logratios - 0.5 / beta) ** 2 + (pairs.rejected_logratios + 0.5 / beta) ** 2
    return calibration - log_sigmoid(pairs.margins)
