"""Binary classifier optimization, on pairs and on single completions."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import LabelledLogps, LossState, PairLogps
from mlx_dpo.objectives.loss_math import label_signs, label_weights, log_sigmoid


@declare_loss()
def bco_pair(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Binary classifier optimization on pairs, without a reward shift.

    Formula:
        -log sigmoid(beta r_w) - log sigmoid(-beta r_l)

    Paper:
        2404.04656 Jung et al.

    When to use:
        Good and bad completions are recognizable one by one; a part of MPO (sigmoid=0.8,bco_pair=0.2,sft=1)

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> bco_pair(example_pairs(), beta=0.5)
        array([1.15188, 1.65188], dtype=float32)
    """
    return -log_sigmoid(beta * pairs.chosen_logratios) - log_sigmoid(-beta * pairs.rejected_logratios)


def update_mean_reward(state: LossState, batch: LabelledLogps, *, beta: float, **_: Any) -> LossState:
    """(number of completions so far, mean of their rewards)."""
    count, mean = state or (0.0, 0.0)
    rewards = beta * batch.logratios
    total = count + len(rewards)
    return total, mean + float(mx.sum(rewards - mean)) / total


@declare_loss(unpaired=True, whole_batch=True, next_state=update_mean_reward)
def bco(
    batch: LabelledLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> mx.array:
    """Binary classifier optimization on single completions, with its reward shift.

    Formula:
        -v log sigmoid(s (beta r - delta)); s = 1 and v = desirable_weight if the label is true, s = -1 and v =
        undesirable_weight if it is false; delta = the mean of beta r over all completions so far

    Paper:
        2404.04656 Jung et al., eq. 10

    When to use:
        As kto, as a classifier; needs no second completion to compare with. On pairs, bco_pair has no shift

    Args:
        batch: log-probs of a whole optimizer batch; every array is [completions]. `state` holds the shift.
        beta: how closely the policy stays with the reference.
        desirable_weight: weight of completions labelled true.
        undesirable_weight: weight of completions labelled false.

    Returns:
        [completions], the loss of each completion.

    Example:
        >>> bco(example_pairs().as_labelled(), beta=0.5)
        array([0.575939, 0.825939, 0.575939, 0.825939], dtype=float32)
    """
    shift = batch.state[1] if batch.state else 0.0
    losses = -log_sigmoid(label_signs(batch) * (beta * batch.logratios - shift))
    return label_weights(batch, desirable_weight, undesirable_weight) * losses
