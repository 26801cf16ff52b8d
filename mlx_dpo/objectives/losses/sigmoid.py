"""DPO and its conservative variant."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import smoothed_log_loss


@declare_loss(supports_f_divergence=True, uses_margins=True)
def sigmoid(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """DPO; with `label_smoothing`, conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences").

    Formula:
        -(1 - e) log sigmoid(beta (r_w - r_l)) - e log sigmoid(-beta (r_w - r_l)); e = label_smoothing

    Paper:
        2305.18290 Rafailov et al., eq. 7

    When to use:
        First. With label_smoothing (conservative DPO) if some labels are wrong or there are few pairs

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        label_smoothing: assumed share of pairs whose labels are flipped.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> sigmoid(example_pairs(), beta=0.5)
        array([0.474077, 0.974077], dtype=float32)
    """
    return smoothed_log_loss(pairs.reward_margins(beta), label_smoothing)
