"""Identity preference optimization."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps

MAX_SQUARABLE = 1e18  # its square is finite in float32


@declare_loss(supports_f_divergence=True)
def ipo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """IPO on log-ratios averaged over tokens, as its authors and TRL compute it.

    Formula:
        (r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2

    Paper:
        2310.12036 Azar et al., eq. 17

    When to use:
        DPO overfits: labels without noise, margins that grow without end. beta is its tau

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: the paper's tau; the margin per token is drawn to 1 / (2 beta).

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> ipo(example_pairs(), beta=0.5)
        array([0.501736, 2.41975], dtype=float32)
    """
    margins = pairs.mean_margins - 1 / (2 * beta)
    return mx.clip(margins, -MAX_SQUARABLE, MAX_SQUARABLE) ** 2
