"""Terms that several losses are made of."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_inputs import LabelledLogps, PairLogps


def log_sigmoid(z: mx.array) -> mx.array:
    """log(1 / (1 + exp(-z))), elementwise; finite for every z."""
    return -mx.logaddexp(0, -z)


def smoothed_log_loss(z: mx.array, label_smoothing: float) -> mx.array:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z), elementwise, with e = label_smoothing."""
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


def chosen_nll(pairs: PairLogps) -> mx.array:
    """[pairs], whose mean over an optimizer batch is the mean of -log pi over all its chosen tokens."""
    return -pairs.chosen_unweighted_logps / pairs.mean_chosen_tokens


def label_signs(batch: LabelledLogps) -> mx.array:
    """[completions], 1 if the label is true, -1 if it is false."""
    return 2 * batch.desirable - 1


def label_weights(batch: LabelledLogps, desirable_weight: float, undesirable_weight: float) -> mx.array:
    """Return each completion's weight by its label.

    Args:
        batch: the completions.
        desirable_weight: weight of those labelled true.
        undesirable_weight: weight of those labelled false.

    Returns:
        [completions].
    """
    return mx.where(batch.desirable > 0, desirable_weight, undesirable_weight)
