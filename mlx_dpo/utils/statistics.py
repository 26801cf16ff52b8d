"""Confidence intervals of means over examples, and a paired test, in numpy.

Examples from one row, such as all pairs of a ranked list, are not independent. If `groups` gives the row of each
example, whole rows are resampled (a cluster bootstrap), and intervals are accordingly wider.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
# With fewer groups some resamples hardly vary, and their deviations divided by that variation have no bound: of three
# normal values the interval is typically a million times as wide as Student's, of eight 1.05 times, at most 3 times.
MIN_GROUPS = 8
MANY_GROUPS = 2000  # with more groups the mean is normal enough that resampling changes nothing
_BLOCK = 1 << 22  # random numbers drawn at a time

Values = Sequence[float] | np.ndarray
Groups = Sequence[Hashable] | np.ndarray


class Interval(NamedTuple):
    """A confidence interval; both ends are NaN if there are too few examples; for means, fewer than `MIN_GROUPS`."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of two sets of values.

    Attributes:
        difference: mean of after - before.
        interval: 95% interval of the difference.
        p: two-sided p-value of no change.
    """

    difference: float
    interval: Interval
    p: float


def bootstrap_interval(
    values: Values,
    *,
    groups: Groups | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Confidence interval of a mean by the studentized bootstrap (Efron and Tibshirani 1993, chapter 12.5).

    It follows the skew of a small sample, where percentiles of resampled means don't. Where all values are 0, 0.5 or 1,
    `win_rate_interval` is used instead: of eight successes in eight, every resample has eight.

    Args:
        values: [examples]; NaNs are left out.
        groups: [examples], the row of each example; None where examples are independent.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
    """
    totals = _Totals.from_values(values, groups)
    return _wilson(totals, level) if totals.are_shares else _studentized(totals, level, resamples, seed)


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0) -> Interval:
    """95% interval of a ratio of sums, such as nats per token.

    Args:
        numerators: [examples].
        denominators: [examples].
        seed: seed of the resampling.
    """
    totals = _Totals(np.asarray(numerators, np.float64), np.asarray(denominators, np.float64))
    return _studentized(totals, 0.95, RESAMPLES, seed)


def win_rate_interval(scores: Values, *, groups: Groups | None = None, level: float = 0.95) -> Interval:
    """Wilson's interval (1927) of a share, at the effective sample size (Korn and Graubard 1998).

    Ties narrow it, and several examples from the same row widen it.

    Args:
        scores: [examples], from 0 to 1: accuracies, or wins with ties as 0.5; NaNs are left out.
        groups: [examples], the row of each example; None where examples are independent.
        level: confidence level.
    """
    return _wilson(_Totals.from_values(scores, groups), level)


def paired_test(
    before: Values, after: Values, *, groups: Groups | None = None, resamples: int = 5000, seed: int = 0
) -> PairedTest:
    """Sign-flip permutation test of whether the mean of paired values changed; two-sided.

    The observed signs count as one of the flips (Phipson and Smyth 2010), so that p is never 0.

    Args:
        before: [examples].
        after: [examples], of the same examples in the same order.
        groups: [examples], the row of each example; None where examples are independent.
        resamples: number of random sign flips.
        seed: of the sign flips.
    """
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    totals = _Totals.from_values(differences, groups)
    if not totals.count:
        return PairedTest(np.nan, Interval(np.nan, np.nan), np.nan)
    rng, observed, num_as_extreme = np.random.default_rng(seed), abs(totals.sums.sum()), 0
    for size in _blocks(resamples, totals.count):
        signs = 2.0 * rng.integers(0, 2, (size, totals.count), np.int8) - 1
        num_as_extreme += int((np.abs(signs @ totals.sums) >= observed * (1 - 1e-12)).sum())
    return PairedTest(totals.mean, _studentized(totals, 0.95, RESAMPLES, seed), (num_as_extreme + 1) / (resamples + 1))


@dataclass(frozen=True)
class _Totals:
    """Sum and number of examples of each group, both [groups]; the mean is the ratio of their totals."""

    sums: np.ndarray
    sizes: np.ndarray
    are_shares: bool = False

    @classmethod
    def from_values(cls, values: Values, groups: Groups | None) -> _Totals:
        numbers = np.asarray(values, np.float64).reshape(-1)
        valid = ~np.isnan(numbers)
        shares = bool(valid.any() and np.isin(numbers[valid], (0, 0.5, 1)).all())
        if groups is None:
            return cls(numbers[valid], np.ones(int(valid.sum())), shares)
        ids: dict[Hashable, int] = {}
        group_ids = np.array([ids.setdefault(g, len(ids)) for g, ok in zip(groups, valid, strict=True) if ok], np.int64)
        return cls(np.bincount(group_ids, numbers[valid]), np.bincount(group_ids).astype(np.float64), shares)

    @property
    def count(self) -> int:
        return len(self.sums)

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def error(self) -> float:
        """The mean's standard error."""
        return float(self._weighted(np.ones((1, self.count)))[1][0])

    def resampled(self, resamples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(means, their standard errors) of groups drawn with replacement, a block of resamples at a time."""
        rng, n = np.random.default_rng(seed), self.count
        for size in _blocks(resamples, n):
            drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
            times = np.bincount(drawn.reshape(-1), minlength=size * n).reshape(size, n).astype(np.float64)
            yield self._weighted(times)

    def _weighted(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and linearized standard errors, both [i], where group j counts times[i, j] times."""
        n = self.count
        size, mean = times @ self.sizes, (times @ self.sums) / (times @ self.sizes)
        products = np.stack([self.sums**2, self.sums * self.sizes, self.sizes**2], axis=1)
        ss, sn, nn = (times @ products).T
        squares = np.maximum(ss - 2 * mean * sn + mean**2 * nn, 0)
        return mean, np.sqrt(squares * n / max(n - 1, 1)) / size


def _studentized(totals: _Totals, level: float, resamples: int, seed: int) -> Interval:
    if totals.count < MIN_GROUPS:
        return Interval(np.nan, np.nan)
    mean, error, tail = totals.mean, totals.error, (1 - level) / 2
    if not error:
        return Interval(mean, mean)
    if totals.count > MANY_GROUPS:
        low, high = NormalDist().inv_cdf(tail), NormalDist().inv_cdf(1 - tail)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold one group only
            deviations = np.concatenate(
                [(means - mean) / errors for means, errors in totals.resampled(resamples, seed)]
            )
        low, high = np.quantile(deviations[np.isfinite(deviations)], [tail, 1 - tail])
    return Interval(float(mean - high * error), float(mean - low * error))


def _wilson(totals: _Totals, level: float) -> Interval:
    if not totals.count:
        return Interval(np.nan, np.nan)
    share, n = min(max(totals.mean, 0.0), 1.0), totals.sizes.sum() / _design_effect(totals)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(float(max(0.0, middle - half)), float(min(1.0, middle + half)))


def _design_effect(totals: _Totals) -> float:
    """Variance of the mean over that of as many independent wins and losses.

    Computed with one group added that wins all and one that loses all, so that no sample is without variation.
    """
    size = totals.sizes.mean()
    sums, sizes = np.append(totals.sums, [size, 0]), np.append(totals.sizes, [size, size])
    share = sums.sum() / sizes.sum()
    return float(((sums - share * sizes) ** 2).sum() / (share * (1 - share) * sizes.sum()))


def _blocks(total: int, width: int) -> Iterator[int]:
    """Sizes of the blocks in which `total` resamples of `width` numbers each are drawn."""
    size = max(1, _BLOCK // max(width, 1))
    return (min(size, total - start) for start in range(0, total, size))
