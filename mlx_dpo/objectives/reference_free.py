"""Objectives on the policy's own log-probs, without a reference."""

from __future__ import annotations

import mlx.core as mx

from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.objective import RewardKind, objective
from mlx_dpo.objectives.paired import log_sigmoid, smoothed_log_loss

CERTAIN = -1e-6  # nats a token, from where an answer counts as certain: its odds are infinite


def chosen_nll(pairs: PairLogps) -> mx.array:
    """[pairs], whose mean over an optimizer batch is the mean over all its chosen tokens of -log p."""
    return -pairs.chosen_likelihoods / pairs.mean_chosen_tokens


@objective(
    formula="-(1 - e) log sigmoid(z) - e log sigmoid(-z); z = beta (log pi(y_w) / |y_w| - log pi(y_l) / |y_l|) - "
    "simpo_gamma, e = label_smoothing",
    paper="2405.14734 Meng et al., eq. 6",
    when="No reference is wanted, and length is not to count. beta 2 to 10, simpo_gamma a quarter to half of it",
    rewards=RewardKind.MEAN_LOGP,
    reference=False,
    asks_margins=True,
)
def simpo(pairs: PairLogps, *, beta: float = 2.0, simpo_gamma: float = 0.5, label_smoothing: float = 0.0) -> mx.array:
    """SimPO, Meng et al. 2024 (arXiv 2405.14734), eq. 6. TRL's CPOTrainer has it as loss_type simpo, cpo_alpha 0."""
    margins = pairs.chosen_logps / pairs.chosen_tokens - pairs.rejected_logps / pairs.rejected_tokens
    return smoothed_log_loss(beta * margins - simpo_gamma - pairs.asked_margins, label_smoothing)


@objective(
    formula="-(1 - e) log sigmoid(z) - e log sigmoid(-z) - cpo_alpha log pi(y_w) / mean |y_w| of the batch; "
    "z = beta (log pi(y_w) - log pi(y_l)), e = label_smoothing",
    paper="2401.08417 Xu et al.",
    when="No reference is wanted, and the chosen answers are worth imitating (translation)",
    rewards=RewardKind.LOGP,
    reference=False,
    asks_margins=True,
)
def cpo(pairs: PairLogps, *, beta: float = 0.1, cpo_alpha: float = 1.0, label_smoothing: float = 0.0) -> mx.array:
    """Contrastive preference optimization, Xu et al. 2024 (arXiv 2401.08417)."""
    z = beta * (pairs.chosen_logps - pairs.rejected_logps) - pairs.asked_margins
    return smoothed_log_loss(z, label_smoothing) + cpo_alpha * chosen_nll(pairs)


@objective(
    formula="-log pi(y_w) / mean |y_w| of the batch - beta log sigmoid(log odds(y_w) - log odds(y_l)); "
    "odds = p / (1 - p), log p = log pi(y) / |y|",
    paper="2403.07691 Hong et al., eq. 6 and 7",
    when="SFT and preferences in one stage, from a base model. beta is its lambda",
    rewards=RewardKind.MEAN_LOGP,
    reference=False,
)
def orpo(pairs: PairLogps, *, beta: float = 0.1) -> mx.array:
    """ORPO, Hong et al. 2024 (arXiv 2403.07691), eq. 6 and 7; likelihoods are of the answers alone.

    TRL's ORPOTrainer takes the first term over the prompt's tokens, too.
    """
    chosen, rejected = pairs.chosen_logps / pairs.chosen_tokens, pairs.rejected_logps / pairs.rejected_tokens
    return chosen_nll(pairs) - beta * log_sigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logp: mx.array) -> mx.array:
    """log(p / (1 - p)) of a log-prob, finite at 0 too."""
    logp = mx.minimum(logp, CERTAIN)
    # For p over a half 1 - p is lost to rounding, and expm1 has it; each branch sees only what it is good for.
    likely = logp > -0.6931
    near, far = mx.where(likely, logp, -1), mx.where(likely, -1, logp)
    return logp - mx.where(likely, mx.log(-mx.expm1(near)), mx.log1p(-mx.exp(far)))
