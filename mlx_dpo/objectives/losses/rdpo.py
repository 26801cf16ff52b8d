"""DPO with length regularisation."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(uses_margins=True)
def rdpo(pairs: PairLogps, *, beta: float = 0.1, rdpo_alpha: float = 0.01) -> mx.array:
    """R-DPO: DPO with length regularisation, so that the policy need not learn a preference for length.

    The reward r is regularised to r - alpha |y|, so the labels are modelled by r = beta log-ratio + alpha |y|.

    Formula:
        -log sigmoid(beta (r_w - r_l) + rdpo_alpha (|y_w| - |y_l|))

    Paper:
        2403.19159 Park et al.

    When to use:
        DPO makes completions longer than it should

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        rdpo_alpha: reward that each token of a completion is assumed to earn by length alone.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> rdpo(example_pairs(), beta=0.5, rdpo_alpha=0.1)
        array([0.437488, 1.54101], dtype=float32)
    """
    return -log_sigmoid(pairs.reward_margins(beta) + rdpo_alpha * (pairs.chosen_tokens - pairs.rejected_tokens))
