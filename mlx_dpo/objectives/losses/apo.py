"""Anchored preference optimization: up and down on pairs, up on single completions."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import LabelledLogps, PairLogps
from mlx_dpo.objectives.loss_math import label_signs, label_weights


@declare_loss()
def apo_zero(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Anchored preference optimization, up: chosen completions become more likely, rejected ones less.

    Formula:
        1 - sigmoid(beta r_w) + sigmoid(beta r_l)

    Paper:
        2408.06266 D'Oosterlinck et al., eq. 7

    When to use:
        The chosen completions are better than the model's own

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> apo_zero(example_pairs(), beta=0.5)
        array([0.875647, 1.12435], dtype=float32)
    """
    return mx.sigmoid(-beta * pairs.chosen_logratios) + mx.sigmoid(beta * pairs.rejected_logratios)


@declare_loss()
def apo_down(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Anchored preference optimization, down: both completions become less likely, the rejected one more so.

    Formula:
        sigmoid(beta r_w) + 1 - sigmoid(beta (r_w - r_l))

    Paper:
        2408.06266 D'Oosterlinck et al., eq. 8

    When to use:
        The model's own completions are better than the chosen ones: both go down, the rejected further

    Args:
        pairs: log-probs of the batch; every array is [pairs].
        beta: how closely the policy stays with the reference.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> apo_down(example_pairs(), beta=0.5)
        array([0.939717, 1.06028], dtype=float32)
    """
    return mx.sigmoid(beta * pairs.chosen_logratios) + mx.sigmoid(-beta * pairs.margins)


@declare_loss(unpaired=True)
def apo_zero_unpaired(
    batch: LabelledLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> mx.array:
    """Anchored preference optimization, up, on single completions.

    Formula:
        v (1 - sigmoid(s beta r)); s = 1 and v = desirable_weight if the label is true, s = -1 and v =
        undesirable_weight if it is false

    Paper:
        2408.06266 D'Oosterlinck et al., eq. 7

    When to use:
        As kto, with no KL to estimate: desirable completions are better than the model's own

    Args:
        batch: log-probs of labelled completions; every array is [completions].
        beta: how closely the policy stays with the reference.
        desirable_weight: weight of completions labelled true.
        undesirable_weight: weight of completions labelled false.

    Returns:
        [completions], the loss of each completion.

    Example:
        >>> apo_zero_unpaired(example_pairs().as_labelled(), beta=0.5)
        array([0.437824, 0.562176, 0.437824, 0.562176], dtype=float32)
    """
    losses = mx.sigmoid(-label_signs(batch) * beta * batch.logratios)
    return label_weights(batch, desirable_weight, undesirable_weight) * losses
