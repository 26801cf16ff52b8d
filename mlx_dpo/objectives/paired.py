"""Objectives on the margin of a pair: how much more the chosen log-ratio is than the rejected one."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_dpo.objectives.loss_inputs import LossState, PairLogps
from mlx_dpo.objectives.objective import objective

SQUARE_LIMIT = 1e18  # what float32 can square


def log_sigmoid(z: mx.array) -> mx.array:
    """log(1 / (1 + exp(-z))), finite for every z."""
    return -mx.logaddexp(0, -z)


def smoothed_log_loss(z: mx.array, label_smoothing: float) -> mx.array:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z)."""
    return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)


@objective(
    formula="-(1 - e) log sigmoid(beta (r_w - r_l)) - e log sigmoid(-beta (r_w - r_l)); e = label_smoothing",
    paper="2305.18290 Rafailov et al., eq. 7",
    when="First. With label_smoothing (conservative DPO) where some labels are wrong, or pairs few",
    any_divergence=True,
    asks_margins=True,
)
def sigmoid(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """DPO, Rafailov et al. 2023 (arXiv 2305.18290), eq. 7.

    With `label_smoothing` it is conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    return smoothed_log_loss(pairs.reward_margins(beta), label_smoothing)


@objective(
    formula="[-(1 - e) log sigmoid(beta (r_w - r_l)) + e log sigmoid(-beta (r_w - r_l))] / (1 - 2 e); "
    "e = label_smoothing",
    paper="2403.00409 Chowdhury et al.",
    when="The share of flipped labels is known: label_smoothing is that share",
    any_divergence=True,
    asks_margins=True,
)
def robust(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 0.0) -> mx.array:
    """Robust DPO: unbiased under labels flipped at a known rate, Chowdhury et al. 2024 (arXiv 2403.00409)."""
    z = pairs.reward_margins(beta)
    clean, flipped = -(1 - label_smoothing) * log_sigmoid(z), -label_smoothing * log_sigmoid(-z)
    return (clean - flipped) / (1 - 2 * label_smoothing)


@objective(
    formula="max(0, 1 - beta (r_w - r_l))",
    paper="2305.10425 Zhao et al. (SLiC); 2309.06657 Liu et al.",
    when="A pair is to stop pulling once its margin is 1 / beta",
    any_divergence=True,
    asks_margins=True,
)
def hinge(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """SLiC's hinge (Zhao et al. 2023, arXiv 2305.10425) on log-ratios, as in Liu et al. 2023 (arXiv 2309.06657)."""
    return mx.maximum(1 - pairs.reward_margins(beta), 0)


@objective(
    formula="(r_w / |y_w| - r_l / |y_l| - 1 / (2 beta))^2",
    paper="2310.12036 Azar et al., eq. 17",
    when="DPO overfits: labels without noise, margins that grow and grow. beta is its tau",
    any_divergence=True,
)
def ipo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """IPO, Azar et al. 2023 (arXiv 2310.12036), eq. 17, on means over tokens, as its authors have it and TRL."""
    margins = pairs.chosen_scores / pairs.chosen_tokens - pairs.rejected_scores / pairs.rejected_tokens
    return mx.clip(margins - 1 / (2 * beta), -SQUARE_LIMIT, SQUARE_LIMIT) ** 2


@objective(
    formula="-log sigmoid(beta (r_w / |y_w| - r_l / |y_l|))",
    paper="2411.15124 Lambert et al. (Tülu 3)",
    when="Answers differ much in length. beta is per token: 5 to 10",
    any_divergence=True,
)
def sigmoid_norm(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Length-normalised DPO, Lambert et al. 2024 (Tülu 3, arXiv 2411.15124)."""
    margins = pairs.chosen_scores / pairs.chosen_tokens - pairs.rejected_scores / pairs.rejected_tokens
    return -log_sigmoid(beta * margins)


@objective(
    formula="q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e); q = sigmoid(beta (r_w - r_l)), e = label_smoothing",
    paper="2402.00856 Ji et al., eq. 16",
    when="DPO spreads over many answers: the reverse KL seeks modes. label_smoothing is above 0",
    any_divergence=True,
    above_zero=("label_smoothing",),
    asks_margins=True,
)
def exo_pair(pairs: PairLogps, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> mx.array:
    """EXO for two answers, KL(policy's preference, labels'): Ji et al. 2024 (arXiv 2402.00856), eq. 16."""
    z = pairs.reward_margins(beta)
    log_chosen, log_rejected = mx.log1p(mx.array(-label_smoothing)), mx.log(mx.array(label_smoothing))
    return mx.sigmoid(z) * (log_sigmoid(z) - log_chosen) + mx.sigmoid(-z) * (log_sigmoid(-z) - log_rejected)


@objective(
    formula="-(1 - m) log sigmoid(z) + m exp(-z); z = beta (r_w - r_l), m = sigmoid(z / discopop_tau)",
    paper="2406.08414 Lu et al., eq. 5",
    when="An alternative to sigmoid that was found by search. With a discopop_tau below 0.11 a pair that starts at a "
    "margin of 0 is pulled the wrong way, to a reward margin of -0.12: raise it where held-out accuracy falls",
    any_divergence=True,
    asks_margins=True,
)
def discopop(pairs: PairLogps, *, beta: float = 0.1, discopop_tau: float = 0.05) -> mx.array:
    """DiscoPOP's log-ratio modulated loss, Lu et al. 2024 (arXiv 2406.08414), eq. 5."""
    z = pairs.reward_margins(beta)
    # m exp(-z) as one exponential: far below zero the product is tiny, and its second factor alone overflows.
    exponential = mx.exp(log_sigmoid(z / discopop_tau) - z)
    return -mx.sigmoid(-z / discopop_tau) * log_sigmoid(z) + exponential


@objective(
    formula="-log sigmoid(beta (r_w - r_l - dpop_lambda max(0, -r_w)))",
    paper="2402.13228 Pal et al.",
    when="The chosen answers grow less likely in training, as with answers that differ by a few tokens",
    asks_margins=True,
)
def dpop(pairs: PairLogps, *, beta: float = 0.1, dpop_lambda: float = 50.0) -> mx.array:
    """DPO-Positive, Pal et al. 2024 (arXiv 2402.13228)."""
    less_likely = mx.maximum(-pairs.chosen_logratios, 0)
    return -log_sigmoid(pairs.reward_margins(beta) - beta * dpop_lambda * less_likely)


@objective(
    formula="-log sigmoid(beta (r_w - r_l) + rdpo_alpha (|y_w| - |y_l|))",
    paper="2403.19159 Park et al.",
    when="DPO makes answers longer than it should",
    asks_margins=True,
)
def rdpo(pairs: PairLogps, *, beta: float = 0.1, rdpo_alpha: float = 0.01) -> mx.array:
    """R-DPO: a length the reward already pays for need not be learned; Park et al. 2024 (arXiv 2403.19159).

    The reward r is regularised to r - alpha |y|, so r = beta log-ratio + alpha |y| is what the labels are modelled by.
    """
    return -log_sigmoid(pairs.reward_margins(beta) + rdpo_alpha * (pairs.chosen_tokens - pairs.rejected_tokens))


@objective(
    formula="-log sigmoid(beta (r_w - r_l) - odpo_alpha log(score_w - score_l))",
    paper="2402.10571 Amini et al., eq. 10",
    when="Rows have scores: the better an answer is scored than the other, the larger its margin is to be",
    scores=True,
    asks_margins=True,
)
def odpo(pairs: PairLogps, *, beta: float = 0.1, odpo_alpha: float = 1.0) -> mx.array:
    """DPO with an offset, Amini et al. 2024 (arXiv 2402.10571), eq. 10, with the logarithm as its scale."""
    return -log_sigmoid(pairs.reward_margins(beta) - odpo_alpha * mx.log(pairs.score_gaps))


def update_mean_margin(
    before: LossState, pairs: PairLogps, *, beta: float, beta_dpo_momentum: float, **_: Any
) -> LossState:
    """The moving mean of batches' reward margins; 0 before the first."""
    earlier = before[0] if before else 0.0
    return (beta_dpo_momentum * earlier + (1 - beta_dpo_momentum) * float((beta * pairs.margins).mean()),)


@objective(
    formula="-log sigmoid(b (r_w - r_l)); b = beta (1 + beta_dpo_alpha (m - M)), at least 0.001; m = mean of "
    "beta (r_w - r_l) over the batch, M = its moving mean, of which beta_dpo_momentum is kept in each step",
    paper="2407.08639 Wu et al., eq. 6 and 9",
    when="Pairs are of mixed quality: batches with large margins stay closer to the reference",
    whole_batch=True,
    asks_margins=True,
    running=update_mean_margin,
)
def beta_dpo(
    pairs: PairLogps, *, beta: float = 0.1, beta_dpo_alpha: float = 0.6, beta_dpo_momentum: float = 0.9
) -> mx.array:
    """DPO with a beta for each batch, no gradient through it; Wu et al. 2024 (arXiv 2407.08639). None is left out."""
    usual = pairs.running[0] if pairs.running else 0.0
    batch_margin = mx.stop_gradient(beta * pairs.margins).mean()
    batch_beta = mx.maximum(beta * (1 + beta_dpo_alpha * (batch_margin - usual)), 1e-3)
    return -log_sigmoid(batch_beta * pairs.margins - pairs.asked_margins)


@objective(
    formula="-log sigmoid(beta (r_w - r_l - (KL_l - KL_w))); KL = sum over the answer's positions of KL(pi_ref || pi)",
    paper="2404.11999 Zeng et al., eq. 16",
    when="The policy drifts: each token is held near the reference. Runs the reference in every step",
    token_kls=True,
    asks_margins=True,
)
def tdpo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """Token-level DPO, its first form: Zeng et al. 2024 (arXiv 2404.11999), eq. 16."""
    chosen_kls, rejected_kls = require_token_kls(pairs)
    return -log_sigmoid(pairs.reward_margins(beta) - beta * (rejected_kls - chosen_kls))


@objective(
    formula="-log sigmoid(beta (r_w - r_l - tdpo_alpha (KL_l - sg KL_w))); KL = sum over the answer's positions of "
    "KL(pi_ref || pi), sg = no gradient",
    paper="2404.11999 Zeng et al., eq. 17",
    when="As tdpo, steadier: the form its authors advise. Runs the reference in every step",
    token_kls=True,
    asks_margins=True,
)
def tdpo2(pairs: PairLogps, *, beta: float = 0.1, tdpo_alpha: float = 0.5) -> mx.array:
    """Token-level DPO, its second form: Zeng et al. 2024 (arXiv 2404.11999), eq. 17."""
    chosen_kls, rejected_kls = require_token_kls(pairs)
    return -log_sigmoid(pairs.reward_margins(beta) - beta * tdpo_alpha * (rejected_kls - mx.stop_gradient(chosen_kls)))


def require_token_kls(pairs: PairLogps) -> tuple[mx.array, mx.array]:
    """The chosen and the rejected completions' KL sums."""
    assert pairs.chosen_kls is not None and pairs.rejected_kls is not None, "token_kls asks for them"
    return pairs.chosen_kls, pairs.rejected_kls
