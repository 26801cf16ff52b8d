"""Self-play preference optimization."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps


@declare_loss()
def sppo_hard(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """SPPO with winning probabilities of 1 and 0.

    Formula:
        (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2

    Paper:
        2405.00675 Wu et al., eq. 4.7

    When to use:
        Rounds of self-play: the model's own completions, judged. 1 / beta is its eta

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: the log-ratios are drawn to 1 / (2 beta) and -1 / (2 beta).

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> sppo_hard(example_pairs(), beta=0.5)
        array([0.5, 4.5], dtype=float32)
    """
    return (pairs.chosen_logratios - 0.5 / beta) ** 2 + (pairs.rejected_logratios + 0.5 / beta) ** 2
