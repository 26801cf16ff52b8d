"""How sure a mean over examples is: intervals and a paired test, in numpy.

Examples that come from one row, like all pairs of a ranked list, say much the same thing. Where `groups` names the row
of each, whole rows are what is drawn, and intervals are as wide as that makes them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
MANY = 2000  # groups; of more the mean is as good as normal, and resampling them finds nothing else
_BLOCK = 1 << 22  # numbers drawn at a time

Values = Sequence[float] | np.ndarray
Groups = Sequence[Hashable] | np.ndarray


class Interval(NamedTuple):
    """Where a mean lies, at some level; both ends NaN where there are too few examples to tell."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """The mean of after - before, its 95% interval, and how likely one so far from zero is if nothing changed."""

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
    """Where the mean of what `values` [examples] were drawn from lies; NaNs are left out.

    The studentized bootstrap (Efron and Tibshirani 1993, chapter 12.5), which follows a small sample's skew where
    percentiles of resampled means don't. Shares, where all values are 0, 0.5 or 1, get `win_rate_interval`: of eight
    right ones in eight, every resample has eight.
    """
    totals = _Totals.of(values, groups)
    return _wilson(totals, level) if totals.are_shares else _studentized(totals, level, resamples, seed)


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, *, seed: int = 0) -> Interval:
    """Where sum(numerators) / sum(denominators) lies, such as nats a token; an example [examples] is drawn whole."""
    totals = _Totals(np.asarray(numerators, np.float64), np.asarray(denominators, np.float64))
    return _studentized(totals, 0.95, RESAMPLES, seed)


def win_rate_interval(scores: Values, *, groups: Groups | None = None, level: float = 0.95) -> Interval:
    """Where a share lies, of scores [examples] from 0 to 1: accuracies, or wins with ties as 0.5; NaNs are left out.

    Wilson's interval (1927) of as many examples as would vary so much (Korn and Graubard 1998): ties make a mean
    surer, and examples from the same row less sure.
    """
    return _wilson(_Totals.of(scores, groups), level)


def paired_test(
    before: Values, after: Values, *, groups: Groups | None = None, resamples: int = 5000, seed: int = 0
) -> PairedTest:
    """Whether the same examples' values [examples] differ in the mean: signs of the differences flipped at random.

    Two-sided. The observed signs count as one of the flips (Phipson and Smyth 2010), so that p is never 0.
    """
    differences = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    totals = _Totals.of(differences, groups)
    if not totals.count:
        return PairedTest(np.nan, Interval(np.nan, np.nan), np.nan)
    rng, observed, as_far = np.random.default_rng(seed), abs(totals.sums.sum()), 0
    for size in _blocks(resamples, totals.count):
        signs = 2.0 * rng.integers(0, 2, (size, totals.count), np.int8) - 1
        as_far += int((np.abs(signs @ totals.sums) >= observed * (1 - 1e-12)).sum())
    return PairedTest(totals.mean, _studentized(totals, 0.95, RESAMPLES, seed), (as_far + 1) / (resamples + 1))


@dataclass(frozen=True)
class _Totals:
    """Of each group, how many examples it has and their sum, [groups]; a mean is the ratio of all sums to all sizes."""

    sums: np.ndarray
    sizes: np.ndarray
    are_shares: bool = False

    @classmethod
    def of(cls, values: Values, groups: Groups | None) -> _Totals:
        numbers = np.asarray(values, np.float64).reshape(-1)
        there = ~np.isnan(numbers)
        shares = bool(there.any() and np.isin(numbers[there], (0, 0.5, 1)).all())
        if groups is None:
            return cls(numbers[there], np.ones(int(there.sum())), shares)
        known: dict[Hashable, int] = {}
        which = np.array([known.setdefault(g, len(known)) for g, t in zip(groups, there, strict=True) if t], np.int64)
        return cls(np.bincount(which, numbers[there]), np.bincount(which).astype(np.float64), shares)

    @property
    def count(self) -> int:
        return len(self.sums)

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def error(self) -> float:
        """The mean's standard error."""
        return float(self._of_draws(np.ones((1, self.count)))[1][0])

    def resampled(self, resamples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(means, their standard errors) of groups drawn with replacement, a block of resamples at a time."""
        rng, n = np.random.default_rng(seed), self.count
        for size in _blocks(resamples, n):
            drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
            times = np.bincount(drawn.reshape(-1), minlength=size * n).reshape(size, n).astype(np.float64)
            yield self._of_draws(times)

    def _of_draws(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same where group j was drawn times[i, j] times: a ratio's mean and linearized error."""
        n = self.count
        size, mean = times @ self.sizes, (times @ self.sums) / (times @ self.sizes)
        products = np.stack([self.sums**2, self.sums * self.sizes, self.sizes**2], axis=1)
        ss, sn, nn = (times @ products).T
        squares = np.maximum(ss - 2 * mean * sn + mean**2 * nn, 0)
        return mean, np.sqrt(squares * n / max(n - 1, 1)) / size


def _studentized(totals: _Totals, level: float, resamples: int, seed: int) -> Interval:
    if totals.count < 2:
        return Interval(np.nan, np.nan)
    mean, error, tail = totals.mean, totals.error, (1 - level) / 2
    if not error:
        return Interval(mean, mean)
    if totals.count > MANY:
        low, high = NormalDist().inv_cdf(tail), NormalDist().inv_cdf(1 - tail)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):  # resamples of one value again and again
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
    """How much more the mean varies than that of as many wins and losses by themselves; 1 where that is what they are.

    Measured with one more group that wins all and one that loses all, so that no sample is without variation.
    """
    size = totals.sizes.mean()
    sums, sizes = np.append(totals.sums, [size, 0]), np.append(totals.sizes, [size, size])
    share = sums.sum() / sizes.sum()
    return float(((sums - share * sizes) ** 2).sum() / (share * (1 - share) * sizes.sum()))


def _blocks(total: int, width: int) -> Iterator[int]:
    """`total` resamples of `width` numbers in pieces that are not too large."""
    size = max(1, _BLOCK // max(width, 1))
    return (min(size, total - start) for start in range(0, total, size))
