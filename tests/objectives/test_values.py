"""Every objective's value and gradient against float64 numpy, for random pairs and at the corners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.config import Divergence
from mlx_dpo.objectives import LOSS_FUNCTIONS, LOSS_SETTINGS, PairLogps, WeightedLoss
from tests.objectives.numpy_losses import LOSSES, Case, beta_of_batch, mean_loss, scored

STEP = 1e-5  # of central differences in float64

# Settings beside the defaults, where a loss has something to set.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "sigmoid": [{"beta": 5.0}, {"label_smoothing": 0.3}],
    "robust": [{"beta": 0.02, "label_smoothing": 0.4}, {"label_smoothing": 0.1}],
    "exo_pair": [{"label_smoothing": 0.3, "beta": 1.0}],
    "discopop": [{"discopop_tau": 0.7}, {"beta": 5.0}, {"beta": 1.0, "discopop_tau": 1.0}],
    "dpop": [{"dpop_lambda": 0.5}],
    "rdpo": [{"rdpo_alpha": 0.2}],
    "beta_dpo": [{"beta_dpo_alpha": 0.1}, {"beta_dpo_alpha": 5.0}],
    "aot": [{"label_smoothing": 0.2, "beta": 1.0}],
    "aot_unpaired": [{"label_smoothing": 0.2, "beta": 1.0}],
    "simpo": [{"beta": 10.0, "simpo_gamma": 3.0, "label_smoothing": 0.1}],
    "cpo": [{"cpo_alpha": 0.2, "label_smoothing": 0.1}],
    "odpo": [{"odpo_alpha": 0.3}],
    "tdpo2": [{"tdpo_alpha": 2.0, "beta": 1.0}],
    "kto": [{"desirable_weight": 1.4, "undesirable_weight": 0.3, "beta": 1.0}],
    "bco": [{"desirable_weight": 1.4, "undesirable_weight": 0.3, "beta": 1.0}],
    "apo_zero_unpaired": [{"desirable_weight": 1.4, "undesirable_weight": 0.3, "beta": 1.0}],
}
RUNS = [
    (name, knobs)
    for name in LOSS_FUNCTIONS
    for knobs in [{}, *SETTINGS.get(name, [{"beta": 0.01}, {"beta": 5.0}] if name != "sft" else [])]
]


def random_case(seed: int, pairs: int = 12, spread: float = 6.0) -> Case:
    rng = np.random.default_rng(seed)
    n_w, n_l = rng.integers(1, 60, (2, pairs)).astype(float)
    ref_w, ref_l = -rng.uniform(0.5, 3, (2, pairs)) * (n_w, n_l)
    policy = np.minimum(np.array([ref_w, ref_l]) + rng.normal(0, spread, (2, pairs)), -0.02)
    gaps, kl_w, kl_l = rng.uniform(0.1, 5, (3, pairs))
    asked = rng.uniform(0, 1, pairs) if seed % 2 else np.zeros(pairs)
    return float32_case(Case(*policy, ref_w, ref_l, n_w, n_l, gaps, kl_w, kl_l, asked, kl=0.5 * seed))


def float32_case(case: Case) -> Case:
    """The same numbers, as float32 can hold them: reference, log-ratio, and their sum the policy."""
    ref_w, ref_l = case.ref_w.astype(np.float32).astype(float), case.ref_l.astype(np.float32).astype(float)
    r_w, r_l = ((p - r).astype(np.float32).astype(float) for p, r in ((case.w, ref_w), (case.l, ref_l)))
    more = {name: getattr(case, name).astype(np.float32).astype(float) for name in ("gaps", "kl_w", "kl_l", "asked")}
    return replace(case, w=ref_w + r_w, l=ref_l + r_l, ref_w=ref_w, ref_l=ref_l, **more)


def corner_case() -> Case:
    """Log-ratios of +-80, policy equal to the reference or nearly, one-token completions, certainty."""
    r_w = np.array([80.0, -80.0, 79.5, -79.5, 0.01, 0.02, -0.03, 5.0])
    r_l = np.array([-80.0, 80.0, 79.0, -79.0, 0.015, -0.01, -0.02, 5.5])
    n_w = np.array([1.0, 300.0, 40.0, 1.0, 1.0, 90.0, 1.0, 1.0])
    n_l = np.array([1.0, 1.0, 30.0, 200.0, 1.0, 1.0, 1.0, 1.0])
    w = np.array([-0.25, -200.0, -2.0, -90.0, -1.0, -64.0, -0.125, -0.5])
    l = np.array([-160.0, -8.0, -3.0, -250.0, -1.5, -2.0, -0.25, -0.75])  # noqa: E741
    return float32_case(Case(w, l, w - r_w, l - r_l, n_w, n_l))


def equal_case() -> Case:
    """Policy and reference the same, and chosen and rejected the same."""
    logps, lengths = np.array([-20.0, -0.5, -64.0]), np.array([9.0, 1.0, 30.0])
    return Case(logps, logps.copy(), logps.copy(), logps.copy(), lengths, lengths)


def seen(case: Case) -> PairLogps:
    policy, reference = np.concatenate([case.w, case.l]), np.concatenate([case.ref_w, case.ref_l])
    tokens = np.concatenate([case.n_w, case.n_l])
    facts = {
        "asked_margins": case.asked,
        "score_gaps": case.gaps,
        "chosen_kls": np.broadcast_to(case.kl_w, case.w.shape),
        "rejected_kls": np.broadcast_to(case.kl_l, case.w.shape),
    }
    arrays = {name: mx.array(values.astype(np.float32)) for name, values in facts.items()}
    return PairLogps.from_numpy(policy, reference, tokens, float(case.n_w.mean()), **arrays, kl=case.kl)


def with_slopes(loss: WeightedLoss, pairs: PairLogps) -> tuple[mx.array, np.ndarray]:
    """Losses and gradients: with respect to the log-probs, then to the KLs."""
    losses, slopes = loss.losses_and_gradients(pairs)
    return losses, np.concatenate([slopes["sums"], slopes["kls"]])


def loss_of(name: str, knobs: dict[str, Any]) -> WeightedLoss:
    return WeightedLoss.parse(name, {knob: knobs.get(knob) for knob in LOSS_SETTINGS})


def resolved(loss: WeightedLoss) -> dict[str, Any]:
    return {name: loss.settings[name] for name in loss.terms[0][1].keyword_defaults}


def differences(name: str, case: Case, knobs: dict[str, Any]) -> np.ndarray:
    """Central differences of the summed loss with respect to the policy's log-probs and KLs, [4 * pairs]."""
    if name == "beta_dpo":  # no gradient through the batch's beta
        batch = beta_of_batch(case, knobs["beta"], knobs["beta_dpo_alpha"], 0.0)
        knobs = {**knobs, "frozen": batch}
    slopes = []
    for side in ("w", "l", "kl_w", "kl_l"):
        if name == "tdpo2" and side == "kl_w":  # no gradient through it
            slopes += [0.0] * len(case.w)
            continue
        for i in range(len(case.w)):
            up, down = (np.broadcast_to(getattr(case, side), case.w.shape).copy() for _ in range(2))
            up[i] += STEP
            down[i] -= STEP
            rise = mean_loss(name, replace(case, **{side: up}), knobs)
            fall = mean_loss(name, replace(case, **{side: down}), knobs)
            slopes.append((rise - fall) / (2 * STEP) * len(case.w))
    return np.array(slopes)


@pytest.mark.parametrize("case", [random_case(1), random_case(2, 5, 30.0), corner_case()], ids=["few", "far", "corner"])
@pytest.mark.parametrize(("name", "knobs"), RUNS, ids=lambda value: str(value))
def test_value_and_gradient(name: str, knobs: dict[str, float], case: Case) -> None:
    loss = loss_of(name, knobs)
    losses, slopes = with_slopes(loss, seen(case))
    expected = LOSSES[name](case, **resolved(loss))
    if name in ("sft", "cpo", "orpo"):  # a pair's share of the mean over tokens; the mean is what counts
        np.testing.assert_allclose(np.array(losses).mean(), expected.mean(), rtol=2e-6)
    else:
        np.testing.assert_allclose(np.array(losses), expected, rtol=1e-5, atol=1e-5)
    numeric = differences(name, case, resolved(loss))
    np.testing.assert_allclose(slopes, numeric, rtol=1e-4, atol=2e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_equal_logps(name: str) -> None:
    """At the start: exactly the reference. Values, and gradients one-sided where there is a kink (dpop)."""
    case, loss = equal_case(), loss_of(name, {})
    losses, slopes = with_slopes(loss, seen(case))
    expected = mean_loss(name, case, resolved(loss))
    assert np.array(losses).mean() == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(slopes).all()
    if name not in ("dpop", "aot", "aot_unpaired"):  # a kink; ties, which leave open whose the gradient is
        np.testing.assert_allclose(slopes, differences(name, case, resolved(loss)), rtol=1e-4, atol=1e-6)
    if name in ("aot", "aot_unpaired"):
        assert slopes[:3] == pytest.approx([-0.05] * 3) and slopes[3:6] == pytest.approx([0.05] * 3)
    if name == "dpop":
        assert slopes[:3] == pytest.approx([-0.05] * 3)


DIVERGENCES = get_args(Divergence)
DIVERGING = [name for name, one in LOSS_FUNCTIONS.items() if one.any_divergence and one.reference]


@pytest.mark.parametrize("alpha", [0.3, 0.5])
@pytest.mark.parametrize("divergence", DIVERGENCES[1:])
@pytest.mark.parametrize("name", DIVERGING)
def test_divergences(name: str, divergence: str, alpha: float) -> None:
    case = random_case(3, spread=1.5)
    given = {"f_divergence": divergence}
    if divergence == "alpha":
        given["f_alpha_divergence_coef"] = alpha
    loss = loss_of(name, given)
    losses, slopes = with_slopes(loss, seen(case))
    knobs = resolved(loss)
    expected = LOSSES[name](scored(case, divergence, alpha), **knobs)
    np.testing.assert_allclose(np.array(losses), expected, rtol=2e-5, atol=2e-6)
    for side, half in (("w", slopes[: len(case.w)]), ("l", slopes[len(case.w) : 2 * len(case.w)])):
        up, down = (replace(case, **{side: getattr(case, side) + sign * STEP}) for sign in (1, -1))
        rise, fall = (LOSSES[name](scored(moved, divergence, alpha), **knobs) for moved in (up, down))
        np.testing.assert_allclose(half, (rise - fall) / (2 * STEP), rtol=2e-4, atol=1e-5)


FINITE = [
    (name, divergence)
    for name, one in LOSS_FUNCTIONS.items()
    for divergence in DIVERGENCES[: 4 if name in DIVERGING else 1]
]


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize(("name", "divergence"), FINITE)
def test_always_finite(name: str, divergence: str, beta: float) -> None:
    loss = loss_of(name, {"beta": beta, "f_divergence": divergence})
    for case in (corner_case(), equal_case(), certain_case(), lost_case()):
        losses, slopes = with_slopes(loss, seen(case))
        assert np.isfinite(np.array(losses)).all() and np.isfinite(slopes).all()


def certain_case() -> Case:
    """Completions of one token with a probability of exactly 1."""
    zero, one = np.zeros(2), np.ones(2)
    return Case(zero, zero, zero, np.array([-80.0, 0.0]), one, one)


def lost_case() -> Case:
    """Log-ratios of a policy that has left its reference, whose exponentials float32 has not."""
    ref, length = np.array([-400.0, -400.0, -5.0, -5.0]), np.array([1.0, 200.0, 1.0, 1.0])
    return Case(ref + np.array([395.0, 395, -900, 0]), ref + np.array([-300.0, 399, 4, -900]), ref, ref, length, length)


def test_a_sum_is_the_sum() -> None:
    case = random_case(4)
    loss = loss_of("sigmoid=0.8, bco_pair=0.2,aot=-0.5,sft", {"beta": 0.3, "label_smoothing": 0.1})
    losses, slopes = with_slopes(loss, seen(case))
    value, gradient = 0.0, np.zeros(4 * len(case.w))
    for weight, name in ((0.8, "sigmoid"), (0.2, "bco_pair"), (-0.5, "aot"), (1, "sft")):
        knobs = {
            k: v for k, v in {"beta": 0.3, "label_smoothing": 0.1}.items() if k in LOSS_FUNCTIONS[name].keyword_defaults
        }
        value += weight * mean_loss(name, case, knobs)
        gradient += weight * differences(name, case, knobs)
    assert np.array(losses).mean() == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-4, atol=1e-6)
    assert loss.whole_batch and loss.needs_reference
