"""Token-level DPO, both forms."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_function import declare_loss
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.loss_math import log_sigmoid


@declare_loss(needs_token_kls=True, uses_margins=True)
def tdpo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Token-level DPO, first form (TDPO1).

    Formula:
        -log sigmoid(beta (r_w - r_l - (KL_l - KL_w))); KL = sum over the completion's positions of KL(pi_ref || pi)

    Paper:
        2404.11999 Zeng et al., eq. 16

    When to use:
        The policy drifts: each token is held near the reference. Runs the reference in every step

    Args:
        pairs: log-probs of the batch, with `chosen_kls` and `rejected_kls`; every array is [pairs].
        beta: how closely the policy stays with the reference.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> kls = {"chosen_kls": mx.array([1.0, 2.0]), "rejected_kls": mx.array([3.0, 1.0])}
        >>> tdpo(example_pairs(**kls), beta=0.5)
        array([0.974077, 0.693147], dtype=float32)
    """
    chosen_kls, rejected_kls = pairs.token_kls
    return -log_sigmoid(pairs.reward_margins(beta) - beta * (rejected_kls - chosen_kls))


@declare_loss(needs_token_kls=True, uses_margins=True)
def tdpo2(pairs: PairLogps, *, beta: float = 0.1, tdpo_alpha: float = 0.5) -> mx.array:
    """Token-level DPO, second form (TDPO2): no gradient through the chosen completion's KL.

    Formula:
        -log sigmoid(beta (r_w - r_l - tdpo_alpha (KL_l - sg KL_w))); KL = sum over the completion's positions of
        KL(pi_ref || pi), sg = no gradient

    Paper:
        2404.11999 Zeng et al., eq. 17

    When to use:
        As tdpo, but more stable: the form its authors recommend. Runs the reference in every step

    Args:
        pairs: log-probs of the batch, with `chosen_kls` and `rejected_kls`; every array is [pairs].
        beta: how closely the policy stays with the reference.
        tdpo_alpha: weight of the difference of both completions' KLs.

    Returns:
        [pairs], the loss of each pair.

    Example:
        >>> kls = {"chosen_kls": mx.array([1.0, 2.0]), "rejected_kls": mx.array([3.0, 1.0])}
        >>> tdpo2(example_pairs(**kls), beta=0.5)
        array([0.693147, 0.825939], dtype=float32)
    """
    chosen_kls, rejected_kls = pairs.token_kls
    return -log_sigmoid(pairs.reward_margins(beta) - beta * tdpo_alpha * (rejected_kls - mx.stop_gradient(chosen_kls)))
