"""Kahneman-Tversky optimization."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import LabelledLogps
from mlx_dpo.objectives.loss_math import label_signs, label_weights


@declare_loss(unpaired=True, needs_kl=True)
def kto(
    batch: LabelledLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> mx.array:
    """KTO, without its constant.

    Formula:
        v (1 - sigmoid(s beta (r - KL))); s = 1 and v = desirable_weight if the label is true, s = -1 and v =
        undesirable_weight if it is false; KL = the batch's mean of r over mismatched prompts and completions, not below
        0

    Paper:
        2402.01306 Ethayarajh et al., eq. 7 and 8

    When to use:
        Answers are judged one by one, thumbs up or down; or pairs are noisy

    Args:
        batch: log-probs of labelled completions, with the batch's `kl`; every array is [completions].
        beta: how closely the policy stays with the reference.
        desirable_weight: weight of completions labelled true.
        undesirable_weight: weight of completions labelled false.

    Returns:
        [completions], the loss of each completion.

    Example:
        >>> kto(example_pairs().as_labelled(), beta=0.5)
        array([0.437824, 0.562176, 0.437824, 0.562176], dtype=float32)
    """
    losses = mx.sigmoid(-label_signs(batch) * beta * (batch.logratios - batch.kl))
    return label_weights(batch, desirable_weight, undesirable_weight) * losses
