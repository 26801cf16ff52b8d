"""Every loss a second time, in float64 numpy, written from the papers and not from the code under test.

`Case` holds log-probs of the policy and the reference, [pairs]; each function returns the losses, [pairs], in pair
order or, where the batch is sorted, in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass
class Case:
    """chosen (w) and rejected (l): policy's and reference's log-probs, lengths, score gaps, KLs, target margins.

    ks: sums over tokens of log-ratio times log-prob; from_ref: 1 where the reference wrote the chosen completion.
    """

    w: Array
    l: Array  # noqa: E741
    ref_w: Array
    ref_l: Array
    n_w: Array
    n_l: Array
    gaps: Array = field(default_factory=lambda: np.array(1.5))
    kl_w: Array = field(default_factory=lambda: np.array(0.0))
    kl_l: Array = field(default_factory=lambda: np.array(0.0))
    target: Array = field(default_factory=lambda: np.array(0.0))
    kl: float = 0.0
    ks_w: Array = field(default_factory=lambda: np.array(0.0))
    ks_l: Array = field(default_factory=lambda: np.array(0.0))
    from_ref: Array = field(default_factory=lambda: np.array(0.0))

    @property
    def r_w(self) -> Array:
        return self.w - self.ref_w

    @property
    def r_l(self) -> Array:
        return self.l - self.ref_l


def sigma(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def nls(x: Array) -> Array:
    """-log sigmoid(x)."""
    return np.logaddexp(0, -x)


def binary(x: Array, e: float) -> Array:
    return (1 - e) * nls(x) + e * nls(-x)


def nll(c: Case) -> Array:
    return np.full(len(c.w), -c.w.sum() / c.n_w.sum())


def exo(d: Array, e: float) -> Array:
    p = sigma(d)
    q = sigma(-d)
    return p * (-nls(d) - np.log(1 - e)) + q * (-nls(-d) - np.log(e))


def discopop(d: Array, tau: float) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        m = sigma(d / tau)
        product = np.where(m == 0, 0.0, m * np.exp(-d))  # in the limit
    return nls(d) * (1 - m) + product


def aot(c: Case, b: float, e: float) -> Array:
    return binary(b * (np.sort(c.w - c.l) - np.sort(c.ref_w - c.ref_l)), e)


def aot_unpaired(c: Case, b: float, e: float) -> Array:
    return binary(b * (np.sort(c.r_w) - np.sort(c.r_l)), e)


def beta_dpo(c: Case, b: float, a: float, m0: float, frozen: float | None = None) -> Array:
    """`frozen`: the batch's beta, where a derivative must not see it move."""
    batch = batch_beta(c, b, a, m0) if frozen is None else frozen
    return nls(batch * (c.r_w - c.r_l) - c.target)


def batch_beta(c: Case, b: float, a: float, m0: float) -> float:
    return max(1e-3, b + b * a * (np.mean(b * (c.r_w - c.r_l)) - m0))


def halves(chosen_losses: Array, rejected_losses: Array, desirable_weight: float, undesirable_weight: float) -> Array:
    """A pair as two labelled completions."""
    return (desirable_weight * chosen_losses + undesirable_weight * rejected_losses) / 2


def orpo(c: Case, b: float) -> Array:
    def odds(logp: Array) -> Array:
        logp = np.minimum(logp, -1e-6)
        return logp - np.log(-np.expm1(logp))

    return nll(c) + b * nls(odds(c.w / c.n_w) - odds(c.l / c.n_l))


LOSSES: dict[str, Callable[..., Array]] = {
    "sigmoid": lambda c, beta, label_smoothing: binary(beta * (c.r_w - c.r_l) - c.target, label_smoothing),
    "robust": lambda c, beta, label_smoothing: (
        (
            (1 - label_smoothing) * nls(beta * (c.r_w - c.r_l) - c.target)
            - label_smoothing * nls(c.target - beta * (c.r_w - c.r_l))
        )
        / (1 - 2 * label_smoothing)
    ),
    "hinge": lambda c, beta: np.clip(1 + c.target - beta * (c.r_w - c.r_l), 0, None),
    "ipo": lambda c, beta: (c.r_w / c.n_w - c.r_l / c.n_l - 0.5 / beta) ** 2,
    "sigmoid_norm": lambda c, beta: nls(beta * (c.r_w / c.n_w - c.r_l / c.n_l)),
    "exo_pair": lambda c, beta, label_smoothing: exo(beta * (c.r_w - c.r_l) - c.target, label_smoothing),
    "discopop": lambda c, beta, discopop_tau: discopop(beta * (c.r_w - c.r_l) - c.target, discopop_tau),
    "dpop": lambda c, beta, dpop_lambda: nls(
        beta * (c.r_w - c.r_l - dpop_lambda * np.clip(-c.r_w, 0, None)) - c.target
    ),
    "rdpo": lambda c, beta, rdpo_alpha: nls(
        (beta * c.r_w + rdpo_alpha * c.n_w) - (beta * c.r_l + rdpo_alpha * c.n_l) - c.target
    ),
    "beta_dpo": lambda c, beta, beta_dpo_alpha, beta_dpo_momentum, **kw: beta_dpo(c, beta, beta_dpo_alpha, 0.0, **kw),
    "nca_pair": lambda c, beta: nls(beta * c.r_w) + 0.5 * (nls(-beta * c.r_w) + nls(-beta * c.r_l)),
    "bco_pair": lambda c, beta: nls(beta * c.r_w) + nls(-beta * c.r_l),
    "sppo_hard": lambda c, beta: (c.r_w - 1 / (2 * beta)) ** 2 + (c.r_l + 1 / (2 * beta)) ** 2,
    "cal_dpo": lambda c, beta: nls(c.r_w - c.r_l) + (c.r_w - 1 / (2 * beta)) ** 2 + (c.r_l + 1 / (2 * beta)) ** 2,
    "apo_zero": lambda c, beta: 1 - sigma(beta * c.r_w) + sigma(beta * c.r_l),
    "apo_down": lambda c, beta: sigma(beta * c.r_w) + 1 - sigma(beta * (c.r_w - c.r_l)),
    "aot": lambda c, beta, label_smoothing: aot(c, beta, label_smoothing),
    "aot_unpaired": lambda c, beta, label_smoothing: aot_unpaired(c, beta, label_smoothing),
    "sft": lambda c: nll(c),
    "simpo": lambda c, beta, simpo_gamma, label_smoothing: binary(
        beta * (c.w / c.n_w - c.l / c.n_l - simpo_gamma / beta) - c.target, label_smoothing
    ),
    "cpo": lambda c, beta, cpo_alpha, label_smoothing: (
        binary(beta * (c.w - c.l) - c.target, label_smoothing) + cpo_alpha * nll(c)
    ),
    "orpo": lambda c, beta: orpo(c, beta),
    "odpo": lambda c, beta, odpo_alpha: nls(beta * (c.r_w - c.r_l) - c.target - odpo_alpha * np.log(c.gaps)),
    "tdpo": lambda c, beta: nls(beta * (c.r_w - c.r_l - (c.kl_l - c.kl_w)) - c.target),
    "tdpo2": lambda c, beta, tdpo_alpha: nls(beta * (c.r_w - c.r_l - tdpo_alpha * (c.kl_l - c.kl_w)) - c.target),
    "kto": lambda c, beta, **weights: halves(
        1 - sigma(beta * (c.r_w - c.kl)), 1 - sigma(beta * (c.kl - c.r_l)), **weights
    ),
    "bco": lambda c, beta, **weights: halves(nls(beta * c.r_w), nls(-beta * c.r_l), **weights),
    "xpo": lambda c, beta, xpo_alpha: (
        nls(beta * (c.r_w - c.r_l) - c.target) + xpo_alpha * (c.from_ref * c.w + (1 - c.from_ref) * c.l)
    ),
    "nash_md": lambda c, beta: ((beta * c.ks_w - 0.5 * c.w) + (beta * c.ks_l + 0.5 * c.l)) / 2,
    "reward": lambda c, center_rewards_coefficient: (
        nls(c.w - c.l - c.target) + center_rewards_coefficient * (c.w + c.l) ** 2
    ),
    "apo_zero_unpaired": lambda c, beta, **weights: halves(1 - sigma(beta * c.r_w), sigma(beta * c.r_l), **weights),
}

# (TRL 1.16) f'(t) at log t = r
SCORES: dict[str, Callable[[Array, float], Array]] = {
    "forward_kl": lambda r, a: 1 - np.exp(-r),
    "js": lambda r, a: np.log(2) - np.logaddexp(0, -r),
    "alpha": lambda r, a: (np.exp((a - 1) * r) - 1) / (a - 1),
}


def mean_loss(name: str, case: Case, settings: dict[str, Any]) -> float:
    return float(np.mean(LOSSES[name](case, **settings)))


def with_scores(case: Case, divergence: str, alpha: float) -> Case:
    """The case with log-ratios replaced by rewards, for the losses that are made of log-ratios alone."""
    score = SCORES[divergence]
    zero = np.zeros_like(case.w)
    return replace(case, w=score(case.r_w, alpha), l=score(case.r_l, alpha), ref_w=zero, ref_l=zero)
