"""The win rate as it would be if answers were as long as their rivals.

AlpacaEval 2's length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475): a logistic regression of who wins on
the difference in length, of which the part that is not length is kept. Its term for how hard each prompt is comes from
hundreds of other models' matches and is left out.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from mlx_dpo.utils.statistics import Interval

PRIOR_PRECISION = np.diag(
    [0, 0.16]
)  # precision of a weak prior on what length does: all wins are finite too (Gelman et al. 2008)
MAX_NEWTON_STEPS = 50


def length_controlled_win_rate(
    scores: np.ndarray, lengths: np.ndarray, opponent_lengths: np.ndarray, level: float = 0.95
) -> tuple[float, Interval]:
    """(win rate, its interval) at equal lengths.

    Args:
        scores: [matches], 1 won, 0.5 tied, 0 lost, or between.
        lengths, rival_lengths: [matches], of the answers, in characters.
    """
    if not len(scores):
        return float("nan"), Interval(float("nan"), float("nan"))
    differences = np.asarray(lengths, np.float64) - np.asarray(opponent_lengths, np.float64)
    spread = differences.std()
    design = np.stack([np.ones(len(scores)), np.tanh(differences / spread) if spread else 0 * differences], axis=1)
    skill, error = _fit(design, np.asarray(scores, np.float64))
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return float(_logistic(skill)), Interval(*(float(_logistic(skill + way * error)) for way in (-z, z)))


def _fit(design: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the intercept, its standard error) by Newton's method, and the quasi-likelihood of how much scores vary.

    Ties make them vary less than wins and losses would. A match half won is added, and the variation of one in which
    anything may happen, so that no sample is without any.
    """
    design, scores = np.vstack([design, [1, 0]]), np.append(scores, 0.5)  # one more match, half won
    weights, information = np.zeros(2), PRIOR_PRECISION
    for _ in range(MAX_NEWTON_STEPS):
        shares = _logistic(design @ weights)
        information = (design * (shares * (1 - shares))[:, None]).T @ design + PRIOR_PRECISION
        step = np.linalg.solve(information, design.T @ (scores - shares) - PRIOR_PRECISION @ weights)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    shares = _logistic(design @ weights)
    dispersion = (((scores - shares) ** 2).sum() + 0.25) / (shares * (1 - shares)).sum()  # the added tie varies by 0
    return weights[0], np.sqrt(dispersion * np.linalg.inv(information)[0, 0])


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))  # 1 / (1 + exp(-x)), with no overflow
