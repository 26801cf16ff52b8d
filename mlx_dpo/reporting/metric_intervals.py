"""Estimates of a run's numbers with 95% intervals, for the page and the terminal.

Examples are what is resampled: the two completions of a pair, and the tokens of a completion, stay together.
`mlx_dpo.utils.statistics` has the methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlx_dpo.utils.statistics import Interval, paired_test, ratio_interval, win_rate_interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: the number.
        low: lower end of the interval.
        high: upper end of the interval.
        count: number of examples.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def from_interval(cls, value: float, interval: Interval, count: int) -> Estimate:
        """Make an estimate; undefined ends of the interval (too few examples) become the value.

        Args:
            value: the number.
            interval: its interval.
            count: number of examples.
        """
        low, high = (value if math.isnan(end) else end for end in interval)
        return cls(value, low, high, count)


def estimate_mean(values: np.ndarray) -> Estimate | None:
    """The mean of [examples]; None if there are none."""
    return estimate_ratio(values, np.ones(len(values)))


def estimate_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate | None:
    """sum(numerators) / sum(denominators) over [examples], such as nats per token; None if there are none."""
    total = denominators.sum()
    if not len(numerators) or not total:
        return None
    interval = ratio_interval(numerators, denominators)
    return Estimate.from_interval(float(numerators.sum() / total), interval, len(numerators))


def estimate_share(successes: np.ndarray) -> Estimate | None:
    """The share of true values among [examples]; None if there are none."""
    if not len(successes):
        return None
    return Estimate.from_interval(float(np.mean(successes)), win_rate_interval(successes), len(successes))


def paired_p_value(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided p-value of no change between [examples] before and after."""
    return paired_test(before, after).p


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r of [examples]; NaN if either is constant or there are fewer than three."""
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
