"""Intervals hold what they promise: in simulations they cover the truth as often as their level says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from mlx_dpo.utils.statistics import MIN_GROUPS, PairedTest, bootstrap_interval, paired_test, win_rate_interval

Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray | None]]


def _accuracies(rng: np.random.Generator) -> tuple[np.ndarray, None]:
    return (rng.random(64) < 0.7).astype(float), None


def _margins(rng: np.random.Generator) -> tuple[np.ndarray, None]:
    return rng.exponential(1, 50) + 0.3 * rng.normal(size=50), None


def _wins_and_ties(rng: np.random.Generator) -> tuple[np.ndarray, None]:
    return rng.choice([0, 0.5, 1], 60, p=[0.2, 0.5, 0.3]), None


def _rows_of_several_pairs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(np.arange(40), rng.integers(1, 7, 40))
    return (1 + rng.normal(size=40))[rows] + 0.5 * rng.normal(size=len(rows)), rows


def _accuracies_of_such_rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat(np.arange(40), rng.integers(1, 7, 40))
    return (rng.random(len(rows)) < rng.beta(2.1, 0.9, 40)[rows]).astype(float), rows


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (_accuracies, 0.7),
        (_margins, 1.0),
        (_wins_and_ties, 0.55),
        (_rows_of_several_pairs, 1.0),
        (_accuracies_of_such_rows, 0.7),
    ],
)
def test_the_95_percent_interval_covers_the_truth_in_93_to_97_of_100_samples(draw: Draw, truth: float) -> None:
    rng, covered = np.random.default_rng(7), 0
    for _ in range(1000):
        values, rows = draw(rng)
        low, high = bootstrap_interval(values, groups=rows, resamples=600)
        covered += low <= truth <= high
    assert 930 <= covered <= 970


def test_what_it_misses_it_misses_on_both_sides() -> None:
    """Of skewed values, too: percentiles of resampled means would miss four of five times on one side."""
    rng = np.random.default_rng(11)
    intervals = [bootstrap_interval(rng.exponential(1, 40), resamples=600) for _ in range(1000)]
    assert 10 <= sum(low > 1 for low, _ in intervals) <= 45
    assert 10 <= sum(high < 1 for _, high in intervals) <= 45


def test_a_level_is_a_level() -> None:
    rng = np.random.default_rng(3)
    intervals = [bootstrap_interval(rng.normal(size=30), level=0.8, resamples=600) for _ in range(1000)]
    assert 770 <= sum(low <= 0 <= high for low, high in intervals) <= 830


@pytest.mark.parametrize(("right", "count"), [(8, 8), (7, 10), (1, 40), (300, 500)])
def test_shares_get_wilsons_interval(right: int, count: int) -> None:
    """By what defines it: its ends are the shares from which what was seen is 1.96 of their own errors away."""
    interval = win_rate_interval([1] * right + [0] * (count - right))
    for end in interval:
        distance, error = abs(right / count - end), np.sqrt(end * (1 - end) / count)
        assert distance == pytest.approx(1.959964 * error, abs=1e-6)
    assert bootstrap_interval([1.0] * right + [0.0] * (count - right)) == interval


def test_ties_alone_are_not_certainty() -> None:
    few, many = win_rate_interval([0.5] * 4), win_rate_interval([0.5] * 100)
    assert few.low < 0.4 and few.high > 0.6 and 0.48 < many.low < 0.5 < many.high < 0.52


def test_values_that_are_not_there_are_left_out() -> None:
    values = [1.5, 2.0, 7.0, 3.0, 4.0, 2.5, 6.0, 1.0]
    assert bootstrap_interval([np.nan, *values]) == bootstrap_interval(values)
    assert all(np.isnan(bootstrap_interval([np.nan, *values[:-1]])))
    assert bootstrap_interval([2.0] * 8) == (2.0, 2.0)


def test_few_examples_have_no_interval_and_enough_have_one_like_students() -> None:
    """The 95% interval of a mean of eight, 2.365 standard errors on each side (Student 1908)."""
    rng, widths = np.random.default_rng(5), []
    for _ in range(60):
        values = rng.normal(size=MIN_GROUPS)
        low, high = bootstrap_interval(values, resamples=600)
        widths.append((high - low) / (2 * 2.365 * values.std(ddof=1) / np.sqrt(MIN_GROUPS)))
        assert all(np.isnan(bootstrap_interval(values[1:]))) and all(np.isnan(bootstrap_interval(values[:3])))
        assert all(np.isnan(paired_test(values[1:], values[:-1]).interval))
    assert 0.9 < np.median(widths) < 1.2 and max(widths) < 6
    assert all(np.isnan(bootstrap_interval(np.arange(30.0), groups=np.arange(30) % (MIN_GROUPS - 1))))


def test_a_row_counts_once_however_often_it_is_repeated() -> None:
    values, rows = np.arange(12.0) ** 2, np.arange(12)
    alone = bootstrap_interval(values)
    assert bootstrap_interval(np.tile(values, 5), groups=np.tile(rows, 5)) == pytest.approx(alone)
    assert np.diff(bootstrap_interval(np.tile(values, 5)))[0] < 0.5 * np.diff(alone)[0]


def test_the_paired_test_is_the_share_of_all_sign_flips_as_far_out() -> None:
    before = np.array([0.1, 0.4, 0.2, 0.9, 0.5, 0.3, 0.6, 0.2])
    after = np.array([0.5, 0.3, 0.9, 1.0, 1.1, 0.4, 0.8, 0.3])
    flips = np.array(list(product([-1, 1], repeat=8))) @ (after - before)
    exact = np.mean(np.abs(flips) >= (after - before).sum() - 1e-12)
    found = paired_test(before, after, resamples=40_000)
    assert found.p == pytest.approx(exact, abs=0.01) and found.difference == pytest.approx(0.2625)
    assert found.interval.low < 0.2625 < found.interval.high
    assert paired_test(before, before) == PairedTest(0, (0, 0), 1)


def test_of_many_examples_resampling_finds_the_normal_interval() -> None:
    values = np.random.default_rng(1).exponential(1, 2500)
    quick, resampled = bootstrap_interval(values), bootstrap_interval(values[:2000])
    half = 1.959964 * values.std(ddof=1) / 50
    assert quick == pytest.approx((values.mean() - half, values.mean() + half))
    half = 1.959964 * values[:2000].std(ddof=1) / 2000**0.5
    assert resampled == pytest.approx((values[:2000].mean() - half, values[:2000].mean() + half), abs=0.1 * half)


def test_the_paired_test_finds_nothing_where_there_is_nothing() -> None:
    rng = np.random.default_rng(5)
    found = [paired_test(*rng.normal(size=(2, 25)), resamples=200).p <= 0.05 for _ in range(600)]
    assert 0.02 <= np.mean(found) <= 0.08
