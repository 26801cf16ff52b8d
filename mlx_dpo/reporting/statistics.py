"""How sure a number is: 95% intervals, and a test of a change on the same examples.

An example is the unit that is drawn: a pair's two answers, or an answer's tokens, go together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2_000  # Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 14.3: at least 1,000
FLIPS = 10_000
LEVEL = 0.95
AT_ONCE = 2_000_000
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval; `count` examples are behind it."""

    value: float
    low: float
    high: float
    count: int


def mean(values: np.ndarray, seed: int = 0) -> Estimate | None:
    """The mean of [examples]; None of nothing."""
    return ratio(values, np.ones(len(values)), seed)


def ratio(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> Estimate | None:
    """sum(numerators) / sum(denominators) over [examples], such as nats a token; None of nothing.

    The interval is the bias-corrected and accelerated bootstrap's: Efron 1987, Better Bootstrap Confidence Intervals,
    JASA 82, 171-185. Of fewer than three examples, or where all are alike, it has no width.
    """
    n, of_all = len(numerators), denominators.sum()
    if not n or not of_all:
        return None
    value = float(numerators.sum() / of_all)
    left_out = (numerators.sum() - numerators) / np.where(of_all > denominators, of_all - denominators, np.nan)
    if n < 3 or not np.ptp(left_out) > 1e-12 * max(1.0, abs(value)):
        return Estimate(value, value, value, n)
    rng, parts = np.random.default_rng(seed), []
    for rows in _chunks(RESAMPLES, n):
        drawn = rng.integers(0, n, (rows, n))
        parts.append(numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1))
    resampled = np.concatenate(parts)
    low, high = np.quantile(resampled, _corrected(resampled, value, left_out))
    return Estimate(value, float(low), float(high), n)


def _corrected(resampled: np.ndarray, value: float, left_out: np.ndarray) -> list[float]:
    """Which quantiles of the resampled values bound the interval: Efron 1987, eq. 2.3 and 6.6."""
    normal = NormalDist()
    below = ((resampled < value).sum() + (resampled == value).sum() / 2) / len(resampled)
    bias = normal.inv_cdf(float(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled))))
    influence = left_out.mean() - left_out
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    return [normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-_Z, _Z)]


def share(hits: np.ndarray) -> Estimate | None:
    """The share of true among [examples]; None of nothing.

    Wilson's score interval (1927, JASA 22, 209-212), since resampling has no width where all are true; Brown, Cai and
    DasGupta 2001 (Statistical Science 16, 101-133) recommend it for few examples.
    """
    n = len(hits)
    if not n:
        return None
    p = float(np.mean(hits))
    middle, width = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return Estimate(p, max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale), n)


def paired_p(before: np.ndarray, after: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of no change between [examples] before and after, by flipping signs of the differences.

    Fisher 1935, The Design of Experiments, section 21. Random flips, the observed ones among them, so that it is never
    0: Phipson and Smyth 2010 (arXiv 1603.05766). Of what is true or false it is McNemar's exact test.
    """
    change = after.astype(np.float64) - before.astype(np.float64)
    change = change[change != 0]
    if not len(change):
        return 1.0
    rng, observed, extreme = np.random.default_rng(seed), abs(change.sum()), 0
    for rows in _chunks(FLIPS, len(change)):
        flips = rng.integers(0, 2, (rows, len(change)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(flips @ change) >= observed * (1 - 1e-12)).sum())
    return (1 + extreme) / (1 + FLIPS)


def _chunks(rows: int, columns: int) -> Iterator[int]:
    """`rows` in pieces that hold at most `AT_ONCE` numbers, so that memory does not grow with the examples."""
    size = max(1, AT_ONCE // columns)
    return (min(size, rows - start) for start in range(0, rows, size))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r of [examples]; NaN where either does not vary."""
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
