"""Intervals and p-values against simulation, and against exact values."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import pytest

from mlx_dpo.reporting.metric_intervals import Estimate, estimate_mean, estimate_ratio, estimate_share, paired_p_value
from mlx_dpo.utils import statistics

RNG = np.random.Generator
EXAMPLES, DATA_SETS = 64, 1_000  # as many as are held out by default


def _margins(rng: RNG) -> Estimate | None:
    return estimate_mean(rng.normal(0.7, 2.0, EXAMPLES))


def _lengths(rng: RNG) -> Estimate | None:
    return estimate_mean(rng.gamma(2.0, 10.0, EXAMPLES))


def _surprise(rng: RNG) -> Estimate | None:
    """Nats per token of completions of varying length; longer ones are likelier, so that both vary together."""
    tokens = rng.integers(5, 60, EXAMPLES).astype(float)
    return estimate_ratio(tokens * rng.gamma(4.0, 0.5, EXAMPLES) + 3, tokens)


def _shares(p: float) -> Callable[[RNG], Estimate | None]:
    return lambda rng: estimate_share(rng.random(EXAMPLES) < p)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (_margins, 0.7),
        (_lengths, 20.0),
        (_surprise, 2.0 + 3 / 32),  # tokens are 5 to 59, 32 in the mean
        (_shares(0.5), 0.5),
        (_shares(0.85), 0.85),
    ],
    ids=["margins", "lengths", "nats a token", "half", "most"],
)
def test_95_percent_intervals_cover_the_truth(
    draw: Callable[[RNG], Estimate | None], truth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1_000)
    rng = np.random.default_rng(5)
    estimates = [draw(rng) for _ in range(DATA_SETS)]
    covered = np.mean([estimate is not None and estimate.low <= truth <= estimate.high for estimate in estimates])
    assert 0.93 <= covered <= 0.97


def test_p_values_of_no_change_are_uniform() -> None:
    rng = np.random.default_rng(0)
    p_values = [paired_p_value(rng.normal(size=24), rng.normal(size=24)) for _ in range(300)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.085
    assert 0.42 <= np.mean(np.array(p_values) < 0.5) <= 0.58


def test_the_test_of_shares_is_mcnemars_exact_test() -> None:
    before, after = np.repeat([0, 1, 0, 1], [9, 2, 5, 7]), np.repeat([1, 0, 0, 1], [9, 2, 5, 7])
    exact = 2 * sum(comb(11, k) for k in range(3)) / 2**11  # 9 gained, 2 lost
    assert paired_p_value(before, after) == pytest.approx(exact, abs=0.01)
    assert paired_p_value(before, before) == 1
    assert paired_p_value(np.zeros(200), np.ones(200)) < 0.001


def test_degenerate_data_has_an_interval_too() -> None:
    assert estimate_mean(np.array([])) is None and estimate_share(np.array([])) is None
    assert estimate_mean(np.full(9, 3.0)) == Estimate(3.0, 3.0, 3.0, 9)
    certain = estimate_share(np.ones(64))
    assert certain is not None and certain.high == 1 and 0.93 < certain.low < 0.95  # never without width
    assert estimate_mean(np.array([2.0])) == Estimate(2.0, 2.0, 2.0, 1)
