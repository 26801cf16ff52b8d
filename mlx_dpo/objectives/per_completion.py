"""Objectives that look at each of a pair's answers against the reference by itself, or at the batch's as two heaps."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.objective import objective
from mlx_dpo.objectives.paired import log_sigmoid, smoothed_log_loss


@objective(
    formula="-log sigmoid(beta r_w) - log sigmoid(-beta r_w) / 2 - log sigmoid(-beta r_l) / 2",
    paper="2402.05369 Chen et al.",
    when="The chosen answers are to stay likely: each is held in place by itself",
)
def nca_pair(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """NCA for two answers, Chen et al. 2024 (arXiv 2402.05369)."""
    chosen, rejected = beta * pairs.chosen_logratios, beta * pairs.rejected_logratios
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


@objective(
    formula="-log sigmoid(beta r_w) - log sigmoid(-beta r_l)",
    paper="2404.04656 Jung et al.",
    when="Good and bad answers are recognisable one by one; a part of MPO (sigmoid=0.8,bco_pair=0.2,sft=1)",
)
def bco_pair(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Binary classifier optimization on pairs, with no reward shift; Jung et al. 2024 (arXiv 2404.04656)."""
    return -log_sigmoid(beta * pairs.chosen_logratios) - log_sigmoid(-beta * pairs.rejected_logratios)


@objective(
    formula="(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2",
    paper="2405.00675 Wu et al., eq. 4.7",
    when="Rounds of self-play: the model's own answers, judged. 1 / beta is its eta",
)
def sppo_hard(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """SPPO with winning probabilities 1 and 0, Wu et al. 2024 (arXiv 2405.00675), eq. 4.7."""
    return (pairs.chosen_logratios - 0.5 / beta) ** 2 + (pairs.rejected_logratios + 0.5 / beta) ** 2


@objective(
    formula="-log sigmoid(r_w - r_l) + (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2",
    paper="2412.14516 Xiao et al.",
    when="Rewards are to have a scale of their own, and the chosen answers to grow more likely",
)
def cal_dpo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Cal-DPO: DPO whose rewards are calibrated to +-1/2, Xiao et al. 2024 (arXiv 2412.14516)."""
    calibration = (pairs.chosen_logratios - 0.5 / beta) ** 2 + (pairs.rejected_logratios + 0.5 / beta) ** 2
    return calibration - log_sigmoid(pairs.margins)


@objective(
    formula="1 - sigmoid(beta r_w) + sigmoid(beta r_l)",
    paper="2408.06266 D'Oosterlinck et al., eq. 7",
    when="The chosen answers are better than the model's own",
)
def apo_zero(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Anchored preference optimization, up; D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 7."""
    return mx.sigmoid(-beta * pairs.chosen_logratios) + mx.sigmoid(beta * pairs.rejected_logratios)


@objective(
    formula="sigmoid(beta r_w) + 1 - sigmoid(beta (r_w - r_l))",
    paper="2408.06266 D'Oosterlinck et al., eq. 8",
    when="The model's own answers are better than the chosen ones: both go down, the rejected further",
)
def apo_down(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Anchored preference optimization, down; D'Oosterlinck et al. 2024 (arXiv 2408.06266), eq. 8."""
    return mx.sigmoid(beta * pairs.chosen_logratios) + mx.sigmoid(-beta * pairs.margins)


@objective(
    formula="-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d); d = sorted(log pi(y_w) - log pi(y_l)) - "
    "sorted(log pi_ref(y_w) - log pi_ref(y_l)) over the batch, e = label_smoothing",
    paper="2406.05882 Melnyk et al.",
    when="Margins are to be better as a distribution, not pair by pair; large batches (32 and more)",
    whole_batch=True,
)
def aot(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """Alignment by optimal transport, paired: Melnyk et al. 2024 (arXiv 2406.05882). Losses are in sorted order."""
    reference = pairs.chosen_reference - pairs.rejected_reference
    by_policy = _order(pairs.margins + reference)
    # The policy's own part stays a difference of log-ratios: small numbers, of which float32 loses nothing.
    d = pairs.margins[by_policy] + (reference[by_policy] - mx.sort(reference))
    return smoothed_log_loss(beta * d, label_smoothing)


@objective(
    formula="-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d); d = sorted(r_w) - sorted(r_l) over the batch, "
    "e = label_smoothing",
    paper="2406.05882 Melnyk et al.",
    when="Chosen and rejected answers need not belong together; large batches (32 and more)",
    whole_batch=True,
)
def aot_unpaired(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """Alignment by optimal transport, unpaired: Melnyk et al. 2024 (arXiv 2406.05882). Losses are in sorted order."""
    chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    return smoothed_log_loss(beta * (chosen[_order(chosen)] - rejected[_order(rejected)]), label_smoothing)


def _order(values: mx.array) -> mx.array:
    return mx.stop_gradient(mx.argsort(values))
