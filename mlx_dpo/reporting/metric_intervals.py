"""Numbers of a run with how sure they are, for the page and the terminal; `mlx_dpo.utils.statistics` computes it.

An example is the unit that is drawn: a pair's two answers, or an answer's tokens, go together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlx_dpo.utils.statistics import Interval, paired_test, ratio_interval, win_rate_interval


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval; `count` examples are behind it."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def from_interval(cls, value: float, interval: Interval, count: int) -> Estimate:
        """Of fewer than two examples, or where all are alike, an interval has no width."""
        low, high = (value if math.isnan(end) else end for end in interval)
        return cls(value, low, high, count)


def estimate_mean(values: np.ndarray) -> Estimate | None:
    """The mean of [examples]; None of nothing."""
    return estimate_ratio(values, np.ones(len(values)))


def estimate_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate | None:
    """sum(numerators) / sum(denominators) over [examples], such as nats a token; None of nothing."""
    of_all = denominators.sum()
    if not len(numerators) or not of_all:
        return None
    value = float(numerators.sum() / of_all)
    return Estimate.from_interval(value, ratio_interval(numerators, denominators), len(numerators))


def estimate_share(successes: np.ndarray) -> Estimate | None:
    """The share of true among [examples]; None of nothing."""
    if not len(successes):
        return None
    return Estimate.from_interval(float(np.mean(successes)), win_rate_interval(successes), len(successes))


def paired_p_value(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided p-value of no change between [examples] before and after."""
    return paired_test(before, after).p


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r of [examples]; NaN where either does not vary."""
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
