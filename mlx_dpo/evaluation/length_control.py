"""The win rate as it would be if the answers of both models were equally long.

This is the length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475): a logistic regression of
the winner on the difference in length, of which the intercept is kept. The term for each prompt's difficulty, which is
fitted on hundreds of other models, is left out.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from mlx_dpo.utils.statistics import Interval

# Precision of a weak prior on the effect of length: the fit is finite even if all matches are won (Gelman et al. 2008).
PRIOR_PRECISION = np.diag([0, 0.16])
MAX_NEWTON_STEPS = 50


def length_controlled_win_rate(
    scores: np.ndarray, lengths: np.ndarray, opponent_lengths: np.ndarray, level: float = 0.95
) -> tuple[float, Interval]:
    """Estimate the win rate at equal lengths.

    Args:
        scores: [matches], 1 won, 0.5 tied, 0 lost, or between.
        lengths: [matches] of the answers, in characters.
        opponent_lengths: [matches] of the opponent's answers, in characters.
        level: confidence level of the interval.

    Returns:
        The win rate and its interval; NaN without matches.
    """
    if not len(scores):
        return float("nan"), Interval(float("nan"), float("nan"))
    differences = np.asarray(lengths, np.float64) - np.asarray(opponent_lengths, np.float64)
    spread = differences.std()
    design = np.stack([np.ones(len(scores)), np.tanh(differences / spread) if spread else 0 * differences], axis=1)
    intercept, error = _fit(design, np.asarray(scores, np.float64))
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return float(_logistic(intercept)), Interval(*(float(_logistic(intercept + sign * error)) for sign in (-z, z)))


def _fit(design: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit by Newton's method. Returns the intercept and its standard error.

    The error is the quasi-likelihood's: ties make scores vary less than wins and losses would. One tied match is added,
    with the variation of a match that may end either way, so that no sample is without variation.
    """
    design, scores = np.vstack([design, [1, 0]]), np.append(scores, 0.5)
    weights, information = np.zeros(2), PRIOR_PRECISION
    for _ in range(MAX_NEWTON_STEPS):
        rates = _logistic(design @ weights)
        information = (design * (rates * (1 - rates))[:, None]).T @ design + PRIOR_PRECISION
        step = np.linalg.solve(information, design.T @ (scores - rates) - PRIOR_PRECISION @ weights)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    rates = _logistic(design @ weights)
    dispersion = (((scores - rates) ** 2).sum() + 0.25) / (rates * (1 - rates)).sum()
    return weights[0], np.sqrt(dispersion * np.linalg.inv(information)[0, 0])


def _logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1 + np.tanh(x / 2))
