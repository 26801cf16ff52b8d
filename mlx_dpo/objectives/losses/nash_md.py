"""Nash mirror descent."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import Opponent, declare_loss
from mlx_dpo.objectives.loss_inputs import LabelledLogps


@declare_loss(unpaired=True, needs_kl_scores=True, opponent=Opponent.MIXTURE)
def nash_md(batch: LabelledLogps, *, beta: float = 0.1) -> mx.array:
    """Nash-MD: policy gradient of the judge's preference over a mixture of policy and reference.

    Formula:
        -(P - 1/2) log pi(y) + beta sum over tokens of sg(log pi - log pi_ref) log pi; P: the judge's preference for y
        over an answer of the mixture (1 if the label is true, 0 if it is false), sg = no gradient

    Paper:
        2312.00886 Munos et al., section 7; 1/2 is the baseline

    When to use:
        With --on-policy only, if the judge's preferences go in circles, so that no score explains them

    Args:
        batch: log-probs of the policy's completions, with `kl_scores`; every array is [completions].
        beta: how closely the policy stays with the reference.

    Returns:
        [completions], the loss of each completion; only its gradient has a meaning.

    Example:
        >>> kl_scores = mx.array([1.0, 2.0])
        >>> nash_md(example_pairs(chosen_kl_scores=kl_scores, rejected_kl_scores=kl_scores).as_labelled(), beta=0.5)
        array([10, 11.5, -14.5, -14], dtype=float32)
    """
    if batch.kl_scores is None:
        raise TypeError("nash_md needs kl_scores")
    win_rates = batch.desirable if batch.win_rates is None else batch.win_rates
    logps = batch.logratios + batch.reference
    return beta * batch.kl_scores - (win_rates - 0.5) * logps
