"""PPO's and RLOO's terms against float64 numpy, written separately: loops over single tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.objectives import LOSS_FUNCTIONS
from mlx_dpo.objectives.losses.ppo import ppo_advantages
from mlx_dpo.objectives.losses.rloo import rloo_advantages
from mlx_dpo.objectives.policy_gradient import (
    adapted_kl_coef,
    generalized_advantages,
    leave_one_out_advantages,
    token_rewards,
    whiten,
)
from mlx_dpo.objectives.sampled_tokens import SampledRewards, SampledTokens

LENGTHS = (5, 1, 7, 3, 4, 2)
RANDOM = np.random.default_rng(11)
Rows = list[list[float]]


def random_rows(scale: float, shift: float = 0.0) -> Rows:
    return [(shift + scale * RANDOM.normal(size=length)).tolist() for length in LENGTHS]


SCORES = RANDOM.normal(size=len(LENGTHS)).tolist()
OLD, REFERENCE, NEW = random_rows(0.7, -2.0), random_rows(0.7, -2.0), random_rows(0.7, -2.0)
OLD_VALUES, VALUES = random_rows(0.5), random_rows(0.5)


def table(rows: Rows) -> mx.array:
    padded = np.full((len(rows), max(map(len, rows))), 0.0)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return mx.array(padded.astype(np.float32))


MASK = table([[1.0] * length for length in LENGTHS])


def assert_rows(actual: mx.array, expected: Rows) -> None:
    """Equal to 1e-5 at tokens, and 0 at padding."""
    for row, values in zip(np.array(actual).tolist(), expected, strict=True):
        np.testing.assert_allclose(row[: len(values)], values, rtol=1e-5, atol=1e-5)
        assert not any(row[len(values) :])


def flat(rows: Rows) -> list[float]:
    return [value for row in rows for value in row]


def expected_rewards(kl_coef: float) -> Rows:
    rows = []
    for score, old, reference in zip(SCORES, OLD, REFERENCE, strict=True):
        row = [-kl_coef * (p - q) for p, q in zip(old, reference, strict=True)]
        row[-1] += score
        rows.append(row)
    return rows


def expected_whitened(rows: Rows, shift_mean: bool) -> Rows:
    values = flat(rows)
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return [[(value - mean) / deviation + (0 if shift_mean else mean) for value in row] for row in rows]


def expected_advantages(rewards: Rows, values: Rows, gamma: float, lam: float) -> Rows:
    """The definition: a sum over all later temporal differences."""
    result = []
    for r, v in zip(rewards, values, strict=True):
        after = [*v[1:], 0.0]
        deltas = [r[t] + gamma * after[t] - v[t] for t in range(len(r))]
        result.append([sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(r))) for t in range(len(r))])
    return result


def sampled(kl_coef: float, **changes: Any) -> SampledRewards:
    arrays = {"logps": OLD, "reference_logps": REFERENCE, "values": OLD_VALUES}
    fields = {"scores": mx.array(SCORES), "mask": MASK, **{name: table(rows) for name, rows in arrays.items()}}
    return SampledRewards(**{**fields, "completions_per_prompt": 2, "kl_coef": kl_coef, **changes})


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_rewards_of_tokens(kl_coef: float) -> None:
    actual = token_rewards(mx.array(SCORES), table(OLD), table(REFERENCE), MASK, kl_coef)
    assert_rows(actual, expected_rewards(kl_coef))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening(shift_mean: bool) -> None:
    assert_rows(whiten(table(NEW), MASK, shift_mean=shift_mean), expected_whitened(NEW, shift_mean))
    assert whiten(mx.array([[3.0, 0.0]]), mx.array([[1.0, 0.0]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.0), (0.97, 1.0)])
def test_generalized_advantages(gamma: float, lam: float) -> None:
    rewards = expected_rewards(0.1)
    actual = generalized_advantages(table(rewards), table(OLD_VALUES), MASK, gamma, lam)
    assert_rows(actual, expected_advantages(rewards, OLD_VALUES, gamma, lam))


@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_advantages_and_returns_of_ppo(whiten_rewards: bool) -> None:
    rewards = expected_rewards(0.1)
    if whiten_rewards:
        rewards = expected_whitened(rewards, shift_mean=False)
    raw = expected_advantages(rewards, OLD_VALUES, 0.99, 0.9)
    returns = [[a + v for a, v in zip(*rows, strict=True)] for rows in zip(raw, OLD_VALUES, strict=True)]
    actual = ppo_advantages(sampled(0.1), kl_coef=7.0, gamma=0.99, lam=0.9, whiten_rewards=whiten_rewards)
    assert_rows(actual[0], expected_whitened(raw, shift_mean=True))
    assert_rows(actual[1], returns)


def test_a_completion_without_a_score_changes_nothing() -> None:
    mask, scores = np.array(MASK), np.array(SCORES, np.float32)
    mask[2], scores[2] = 0, np.nan
    partial = ppo_advantages(sampled(0.1, mask=mx.array(mask), scores=mx.array(scores)))
    keep = mx.array([0, 1, 3, 4, 5])
    fields = {
        name: getattr(sampled(0.1), name)[keep] for name in ("scores", "logps", "reference_logps", "values", "mask")
    }
    without = ppo_advantages(sampled(0.1, **fields))
    for one, other in zip(partial, without, strict=True):
        np.testing.assert_allclose(np.array(one[keep]), np.array(other), rtol=1e-5, atol=1e-6)
        assert not np.array(one)[2].any()


def test_leave_one_out_advantages() -> None:
    rewards = RANDOM.normal(size=(3, 4))
    expected = [[row[i] - (sum(row) - row[i]) / 3 for i in range(4)] for row in rewards.tolist()]
    np.testing.assert_allclose(np.array(leave_one_out_advantages(mx.array(rewards))), expected, rtol=1e-5, atol=1e-5)
    nan = float("nan")
    unknown = leave_one_out_advantages(mx.array([[1.0, nan, 4.0], [2.0, nan, nan]]))
    assert unknown.tolist() == [[-3.0, 0.0, 3.0], [0.0, 0.0, 0.0]]


def test_advantages_of_rloo() -> None:
    rewards = [
        score - 0.1 * sum(p - q for p, q in zip(old, reference, strict=True))
        for score, old, reference in zip(SCORES, OLD, REFERENCE, strict=True)
    ]
    expected = []
    for i, length in enumerate(LENGTHS):
        other = i + 1 if i % 2 == 0 else i - 1
        expected.append([rewards[i] - rewards[other]] * length)
    assert_rows(rloo_advantages(sampled(0.1), kl_coef=7.0)[0], expected)


def test_the_adaptive_coefficient() -> None:
    """By hand, for a batch of 64 completions: the error is cut to 0.2."""
    assert adapted_kl_coef(0.1, 6.6, 6.0, 64, 640) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adapted_kl_coef(0.1, 60.0, 6.0, 64, 640) == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert adapted_kl_coef(0.1, -3.0, 6.0, 64, 640) == pytest.approx(0.1 * (1 - 0.2 * 0.1))


ADVANTAGES, RETURNS = random_rows(1.0), random_rows(0.8)


def tokens(advantages: Rows = ADVANTAGES) -> SampledTokens:
    rows = (NEW, VALUES, OLD, OLD_VALUES, advantages, RETURNS)
    return SampledTokens(*map(table, rows), MASK, mean_tokens=sum(LENGTHS) / len(LENGTHS))


def expected_ppo(new: Rows, values: Rows, cliprange: float, vf_coef: float, cliprange_value: float) -> dict[str, float]:
    """Means over all tokens."""
    sums = dict.fromkeys(("policy", "value", "clipfrac", "value clipfrac", "approxkl", "ratio"), 0.0)
    columns = zip(*map(flat, (new, values, OLD, OLD_VALUES, ADVANTAGES, RETURNS)), strict=True)
    for logp, value, old, old_value, advantage, target in columns:
        ratio = math.exp(logp - old)
        losses = -advantage * ratio, -advantage * min(max(ratio, 1 - cliprange), 1 + cliprange)
        near = min(max(value, old_value - cliprange_value), old_value + cliprange_value)
        errors = (value - target) ** 2, (near - target) ** 2
        sums["policy"] += max(losses)
        sums["value"] += 0.5 * max(errors)
        sums["clipfrac"] += losses[1] > losses[0]
        sums["value clipfrac"] += errors[1] > errors[0]
        sums["approxkl"] += 0.5 * (logp - old) ** 2
        sums["ratio"] += ratio
    means = {name: value / sum(LENGTHS) for name, value in sums.items()}
    return means | {"loss": means["policy"] + vf_coef * means["value"]}


PPO = {"cliprange": 0.3, "vf_coef": 0.4, "cliprange_value": 0.25}
NAMES = {
    "policy": "loss/policy_avg",
    "value": "loss/value_avg",
    "clipfrac": "policy/clipfrac_avg",
    "value clipfrac": "val/clipfrac_avg",
    "approxkl": "policy/approxkl_avg",
    "ratio": "val/ratio",
}


def test_loss_of_ppo() -> None:
    expected, loss = expected_ppo(NEW, VALUES, **PPO), LOSS_FUNCTIONS["ppo"]
    assert 0.1 < expected["clipfrac"] < 0.9 and 0.1 < expected["value clipfrac"] < 0.9
    assert loss.function(tokens(), **PPO).mean().item() == pytest.approx(expected["loss"], rel=1e-5)
    assert loss.statistics is not None
    statistics = loss.statistics(tokens(), **PPO)
    for name, metric in NAMES.items():
        assert statistics[metric].mean().item() == pytest.approx(expected[name], rel=1e-5), name


def test_gradient_of_ppo() -> None:
    """Against finite differences of the float64 reference, for every token's log-prob and value."""
    batch, loss, step = tokens(), LOSS_FUNCTIONS["ppo"].function, 1e-6
    of_logps = mx.grad(lambda logps: loss(replace(batch, logps=logps), **PPO).mean())(batch.logps)
    of_values = mx.grad(lambda values: loss(replace(batch, values=values), **PPO).mean())(batch.values)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            for actual, which in ((of_logps, 0), (of_values, 1)):
                ends = []
                for sign in (1, -1):
                    rows = [[list(row) for row in NEW], [list(row) for row in VALUES]]
                    rows[which][i][t] += sign * step
                    ends.append(expected_ppo(*rows, **PPO)["loss"])
                difference = (ends[0] - ends[1]) / (2 * step)
                assert actual[i, t].item() == pytest.approx(difference, rel=1e-4, abs=1e-6)


def test_loss_of_rloo() -> None:
    by_completion = [[row[0]] * len(row) for row in ADVANTAGES]
    near = [[p + 0.2 * (q - p) for p, q in zip(old, new, strict=True)] for old, new in zip(OLD, NEW, strict=True)]
    expected, clipped = [], []
    for new, old, advantages in zip(near, OLD, by_completion, strict=True):
        ratio, advantage = math.exp(sum(new) - sum(old)), advantages[0]
        losses = -advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2)
        expected.append(max(losses))
        clipped.append(losses[1] > losses[0])
    loss, batch = LOSS_FUNCTIONS["rloo"], replace(tokens(by_completion), logps=table(near))
    np.testing.assert_allclose(np.array(loss.function(batch, cliprange=0.2)), expected, rtol=1e-5)
    assert loss.statistics is not None and 0 < sum(clipped) < len(clipped)
    assert np.array(loss.statistics(batch, cliprange=0.2)["policy/clipfrac_avg"]).tolist() == clipped
