"""Every loss's value and gradient against float64 numpy, for random pairs and at the corners."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.objectives import LOSS_FUNCTIONS, LOSS_SETTINGS, PairLogps, WeightedLoss
from mlx_dpo.settings.objective_settings import Divergence
from tests.objectives.numpy_losses import LOSSES, Case, batch_beta, mean_loss, with_scores

FLOAT32_FIELDS = ("gaps", "kl_w", "kl_l", "target", "ks_w", "ks_l", "from_ref")
STEP = 1e-5  # of central differences in float64

# Settings other than the defaults, by loss.
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
    "reward": [{"center_rewards_coefficient": 0.01}],
    "xpo": [{"xpo_alpha": 0.3, "beta": 1.0}],
    "apo_zero_unpaired": [{"desirable_weight": 1.4, "undesirable_weight": 0.3, "beta": 1.0}],
}
ON_LOGPS = [name for name, loss in LOSS_FUNCTIONS.items() if not loss.is_policy_gradient]  # else: on tokens
RUNS = [
    (name, settings)
    for name in ON_LOGPS
    for settings in [{}, *SETTINGS.get(name, [{"beta": 0.01}, {"beta": 5.0}] if name != "sft" else [])]
]


def random_case(seed: int, pairs: int = 12, spread: float = 6.0) -> Case:
    rng = np.random.default_rng(seed)
    n_w, n_l = rng.integers(1, 60, (2, pairs)).astype(float)
    ref_w, ref_l = -rng.uniform(0.5, 3, (2, pairs)) * (n_w, n_l)
    policy = np.minimum(np.array([ref_w, ref_l]) + rng.normal(0, spread, (2, pairs)), -0.02)
    gaps, kl_w, kl_l = rng.uniform(0.1, 5, (3, pairs))
    token_terms = {"ks_w": 3 * kl_w - 5, "ks_l": 3 * kl_l - 5, "from_ref": (gaps > 2).astype(float)}
    target = rng.uniform(0, 1, pairs) if seed % 2 else np.zeros(pairs)
    return float32_case(Case(*policy, ref_w, ref_l, n_w, n_l, gaps, kl_w, kl_l, target, kl=0.5 * seed, **token_terms))


def float32_case(case: Case) -> Case:
    """A case rounded so that reference and log-ratio are float32 numbers, and the policy is their sum."""
    ref_w, ref_l = case.ref_w.astype(np.float32).astype(float), case.ref_l.astype(np.float32).astype(float)
    r_w, r_l = ((p - r).astype(np.float32).astype(float) for p, r in ((case.w, ref_w), (case.l, ref_l)))
    more = {name: getattr(case, name).astype(np.float32).astype(float) for name in FLOAT32_FIELDS}
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
    """Policy and reference are equal, and so are chosen and rejected."""
    logps, lengths = np.array([-20.0, -0.5, -64.0]), np.array([9.0, 1.0, 30.0])
    return Case(logps, logps.copy(), logps.copy(), logps.copy(), lengths, lengths)


def loss_inputs(case: Case) -> PairLogps:
    policy, reference = np.concatenate([case.w, case.l]), np.concatenate([case.ref_w, case.ref_l])
    tokens = np.concatenate([case.n_w, case.n_l])
    fields = {
        "target_margins": case.target,
        "score_gaps": case.gaps,
        "chosen_kls": np.broadcast_to(case.kl_w, case.w.shape),
        "rejected_kls": np.broadcast_to(case.kl_l, case.w.shape),
        "chosen_kl_scores": np.broadcast_to(case.ks_w, case.w.shape),
        "rejected_kl_scores": np.broadcast_to(case.ks_l, case.w.shape),
        "chosen_is_reference": case.from_ref,
    }
    arrays = {name: mx.array(values.astype(np.float32)) for name, values in fields.items()}
    return PairLogps.from_numpy(policy, reference, tokens, float(case.n_w.mean()), **arrays, kl=case.kl)


def losses_and_gradients(loss: WeightedLoss, pairs: PairLogps) -> tuple[mx.array, np.ndarray]:
    """Losses and gradients: with respect to the log-probs, then to the KLs and to the KL scores."""
    losses, gradients = loss.losses_and_gradients(pairs)
    return losses, np.concatenate([gradients["sums"], gradients["kls"], gradients["kl_scores"]])


def parse_loss(text: str, settings: dict[str, Any]) -> WeightedLoss:
    return WeightedLoss.parse(text, {name: settings.get(name) for name in LOSS_SETTINGS})


def resolved(loss: WeightedLoss) -> dict[str, Any]:
    return {name: loss.settings[name] for name in loss.terms[0][1].keyword_defaults}


def differences(name: str, case: Case, settings: dict[str, Any]) -> np.ndarray:
    """Central differences of the summed loss with respect to the policy's log-probs, KLs and KL scores, [6 * pairs]."""
    if name == "beta_dpo":  # no gradient through the batch's beta
        batch = batch_beta(case, settings["beta"], settings["beta_dpo_alpha"], 0.0)
        settings = {**settings, "frozen": batch}
    gradients = []
    for field in ("w", "l", "kl_w", "kl_l", "ks_w", "ks_l"):
        if name == "tdpo2" and field == "kl_w":  # no gradient through it
            gradients += [0.0] * len(case.w)
            continue
        for i in range(len(case.w)):
            up, down = (np.broadcast_to(getattr(case, field), case.w.shape).copy() for _ in range(2))
            up[i] += STEP
            down[i] -= STEP
            rise = mean_loss(name, replace(case, **{field: up}), settings)
            fall = mean_loss(name, replace(case, **{field: down}), settings)
            gradients.append((rise - fall) / (2 * STEP) * len(case.w))
    return np.array(gradients)


@pytest.mark.parametrize("case", [random_case(1), random_case(2, 5, 30.0), corner_case()], ids=["few", "far", "corner"])
@pytest.mark.parametrize(("name", "settings"), RUNS, ids=lambda value: str(value))
def test_value_and_gradient(name: str, settings: dict[str, float], case: Case) -> None:
    loss = parse_loss(name, settings)
    losses, gradients = losses_and_gradients(loss, loss_inputs(case))
    expected = LOSSES[name](case, **resolved(loss))
    if name in ("sft", "cpo", "orpo"):  # a pair's share of the mean over tokens; the mean is what counts
        np.testing.assert_allclose(np.array(losses).mean(), expected.mean(), rtol=2e-6)
    else:
        np.testing.assert_allclose(np.array(losses), expected, rtol=1e-5, atol=1e-5)
    numeric = differences(name, case, resolved(loss))
    np.testing.assert_allclose(gradients, numeric, rtol=1e-4, atol=2e-6 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ON_LOGPS)
def test_equal_logps(name: str) -> None:
    """At the start of training, the policy is the reference. At a kink (dpop), the gradient is one-sided."""
    case, loss = equal_case(), parse_loss(name, {})
    losses, gradients = losses_and_gradients(loss, loss_inputs(case))
    expected = mean_loss(name, case, resolved(loss))
    assert np.array(losses).mean() == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(gradients).all()
    if name not in ("dpop", "aot", "aot_unpaired"):  # a kink; ties, at which the gradient is not defined
        np.testing.assert_allclose(gradients, differences(name, case, resolved(loss)), rtol=1e-4, atol=1e-6)
    if name in ("aot", "aot_unpaired"):
        assert gradients[:3] == pytest.approx([-0.05] * 3) and gradients[3:6] == pytest.approx([0.05] * 3)
    if name == "dpop":
        assert gradients[:3] == pytest.approx([-0.05] * 3)


DIVERGENCES = get_args(Divergence)
DIVERGING = [name for name, loss in LOSS_FUNCTIONS.items() if loss.supports_f_divergence and loss.uses_reference]


@pytest.mark.parametrize("alpha", [0.3, 0.5])
@pytest.mark.parametrize("divergence", DIVERGENCES[1:])
@pytest.mark.parametrize("name", DIVERGING)
def test_divergences(name: str, divergence: str, alpha: float) -> None:
    case = random_case(3, spread=1.5)
    divergence_settings = {"f_divergence": divergence}
    if divergence == "alpha":
        divergence_settings["f_alpha_divergence_coef"] = alpha
    loss = parse_loss(name, divergence_settings)
    losses, gradients = losses_and_gradients(loss, loss_inputs(case))
    settings = resolved(loss)
    expected = LOSSES[name](with_scores(case, divergence, alpha), **settings)
    np.testing.assert_allclose(np.array(losses), expected, rtol=2e-5, atol=2e-6)
    for field, gradient in (("w", gradients[: len(case.w)]), ("l", gradients[len(case.w) : 2 * len(case.w)])):
        up, down = (replace(case, **{field: getattr(case, field) + sign * STEP}) for sign in (1, -1))
        rise, fall = (LOSSES[name](with_scores(moved, divergence, alpha), **settings) for moved in (up, down))
        np.testing.assert_allclose(gradient, (rise - fall) / (2 * STEP), rtol=2e-4, atol=1e-5)


FINITE = [(name, divergence) for name in ON_LOGPS for divergence in DIVERGENCES[: 4 if name in DIVERGING else 1]]


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize(("name", "divergence"), FINITE)
def test_always_finite(name: str, divergence: str, beta: float) -> None:
    settings = {"beta": beta} if "beta" in LOSS_FUNCTIONS[name].settings else {}
    loss = parse_loss(name, {**settings, "f_divergence": divergence})
    for case in (corner_case(), equal_case(), certain_case(), distant_case()):
        losses, gradients = losses_and_gradients(loss, loss_inputs(case))
        assert np.isfinite(np.array(losses)).all() and np.isfinite(gradients).all()


def certain_case() -> Case:
    """Completions of one token with a probability of exactly 1."""
    zero, one = np.zeros(2), np.ones(2)
    return Case(zero, zero, zero, np.array([-80.0, 0.0]), one, one)


def distant_case() -> Case:
    """Log-ratios far from the reference, whose exponentials overflow float32."""
    ref, length = np.array([-400.0, -400.0, -5.0, -5.0]), np.array([1.0, 200.0, 1.0, 1.0])
    return Case(ref + np.array([395.0, 395, -900, 0]), ref + np.array([-300.0, 399, 4, -900]), ref, ref, length, length)


def test_weighted_sum() -> None:
    case = random_case(4)
    loss = parse_loss("sigmoid=0.8, bco_pair=0.2,aot=-0.5,sft", {"beta": 0.3, "label_smoothing": 0.1})
    losses, gradients = losses_and_gradients(loss, loss_inputs(case))
    value, gradient = 0.0, np.zeros(6 * len(case.w))
    for weight, name in ((0.8, "sigmoid"), (0.2, "bco_pair"), (-0.5, "aot"), (1, "sft")):
        settings = {
            k: v for k, v in {"beta": 0.3, "label_smoothing": 0.1}.items() if k in LOSS_FUNCTIONS[name].keyword_defaults
        }
        value += weight * mean_loss(name, case, settings)
        gradient += weight * differences(name, case, settings)
    assert np.array(losses).mean() == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(gradients, gradient, rtol=1e-4, atol=1e-6)
    assert loss.whole_batch and loss.needs_reference
