"""NCA for two completions."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss()
def nca_pair(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """NCA (noise contrastive alignment) for two completions.

    Formula:
        -log sigmoid(beta r_w) - log sigmoid(-beta r_w) / 2 - log sigmoid(-beta r_l) / 2

    Paper:
        2402.05369 Chen et al.

    When to use:
        The chosen completions should stay likely: each completion's likelihood is trained by itself

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> nca_pair(example_pairs(), beta=0.5)
        array([1.27688, 1.52688], dtype=float32)
    """
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)
