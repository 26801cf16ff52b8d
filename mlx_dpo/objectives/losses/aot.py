"""Alignment by optimal transport: paired and unpaired."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import smoothed_log_loss


@declare_loss(whole_batch=True, keeps_pair_order=False)
def aot(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """Alignment by optimal transport, paired: the margins as a distribution.

    Formula:
        -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d); d = sorted(log pi(y_w) - log pi(y_l)) -
        sorted(log pi_ref(y_w) - log pi_ref(y_l)) over the batch, e = label_smoothing

    Paper:
        2406.05882 Melnyk et al.

    When to use:
        Margins should improve as a distribution, not pair by pair; large batches (32 and more)

    Args:
        pairs: log-probs of a whole optimizer batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        label_smoothing: assumed share of pairs whose labels are flipped.

    Returns:
        [pairs], losses in the order of the sorted margins, not of the pairs.

    Example:
        >>> aot(example_pairs(), beta=0.5)
        array([0.974077, 0.474077], dtype=float32)
    """
    reference = pairs.chosen_reference - pairs.rejected_reference
    order = _order(pairs.margins + reference)
    # The policy's own part stays a difference of log-ratios: small numbers, of which float32 loses nothing.
    differences = pairs.margins[order] + (reference[order] - mx.sort(reference))
    return smoothed_log_loss(beta * differences, label_smoothing)


@declare_loss(whole_batch=True, keeps_pair_order=False)
def aot_unpaired(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """Alignment by optimal transport, unpaired: the rewards of both sides as distributions.

    Formula:
        -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d); d = sorted(r_w) - sorted(r_l) over the batch,
        e = label_smoothing

    Paper:
        2406.05882 Melnyk et al.

    When to use:
        Chosen and rejected completions need not belong together; large batches (32 and more)

    Args:
        pairs: log-probs of a whole optimizer batch; every array is [pairs].
        beta: how closely the policy stays with the reference.
        label_smoothing: assumed share of pairs whose labels are flipped.

    Returns:
        [pairs], losses in the order of the sorted log-ratios, not of the pairs.

    Example:
        >>> aot_unpaired(example_pairs(), beta=0.5)
        array([0.693147, 0.693147], dtype=float32)
    """
    chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    return smoothed_log_loss(beta * (chosen[_order(chosen)] - rejected[_order(rejected)]), label_smoothing)


def _order(values: mx.array) -> mx.array:
    return mx.stop_gradient(mx.argsort(values))
