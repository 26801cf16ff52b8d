"""What matches come to: both orders, ties, win rates and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mlx_dpo.evaluation.head_to_head import judge_head_to_head
from mlx_dpo.evaluation.length_control import length_controlled_win_rate
from mlx_dpo.judges.function_judge import FunctionJudge
from mlx_dpo.judges.judge import Comparison, Judge
from mlx_dpo.utils.statistics import win_rate_interval


def by(function: Callable[[str, str, str], float | None]) -> FunctionJudge:
    return FunctionJudge(function, "test")


PROMPTS = ["a", "b", "c", "d"]
BASE, TUNED = ["xx", "xx", "xx", "same"], ["x", "xxx", "yy", "same"]


def test_a_judge_of_one_mind() -> None:
    found = judge_head_to_head(
        PROMPTS, BASE, TUNED, by(lambda _, a, b: 0.5 * ((len(a) > len(b)) - (len(a) < len(b)) + 1))
    )
    assert found.scores.tolist() == [0, 1, 0.5, 0.5]
    told = found.summary
    assert (told["wins"], told["ties"], told["losses"], told["swayed_by_order"]) == (1, 2, 1, 0)
    assert told["win_rate"] == 0.5 and told["win_rate_interval"] == list(win_rate_interval([0, 1, 0.5, 0.5]))
    assert told["mean_characters"] == {"base": 2.5, "tuned": 2.5}
    assert told["answers"][1] == {"prompt": "b", "base": "xx", "tuned": "xxx", "score": 1}


def test_one_who_always_takes_the_first_moves_nothing() -> None:
    told = judge_head_to_head(PROMPTS, BASE, TUNED, by(lambda *_: 1)).summary
    assert (told["win_rate"], told["ties"], told["swayed_by_order"]) == (0.5, 4, 3)


def test_verdicts_that_could_not_be_read_are_left_out_and_counted() -> None:
    told = judge_head_to_head(
        PROMPTS, BASE, TUNED, by(lambda prompt, a, b: None if (prompt, a) == ("a", "x") else 1)
    ).summary
    assert (told["prompts"], told["judged"]) == (4, 3) and math.isnan(told["answers"][0]["score"])
    nothing = judge_head_to_head(PROMPTS[:1], BASE[:1], TUNED[:1], by(lambda *_: None)).summary
    assert nothing["judged"] == 0 and math.isnan(nothing["win_rate"])


class Blind(Judge):
    name, order_sensitive = "blind", False

    def __init__(self) -> None:
        self.asked: list[Comparison] = []

    def verdicts(self, matches: Sequence[Comparison]) -> list[float | None]:
        self.asked += matches
        return [1.0] * len(matches)


def test_equal_answers_are_not_asked_about_nor_both_orders_of_one_that_sees_none() -> None:
    judge = Blind()
    assert judge_head_to_head(PROMPTS, BASE, TUNED, judge).scores.tolist() == [1, 1, 1, 0.5]
    assert judge.asked == [Comparison(*three) for three in zip(PROMPTS[:3], TUNED, BASE, strict=False)]


# Length control


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _matches(rng: np.random.Generator, count: int, skill: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores over both orders, by a judge that likes long answers, of a model that gives them."""
    lengths, rivals = rng.normal(400, 60, count), rng.normal(340, 60, count)
    differences = lengths - rivals
    chances = _logistic(skill + 1.5 * np.tanh(differences / differences.std()))
    return (rng.random((2, count)) < chances).mean(axis=0), lengths, rivals


def test_what_length_has_won_is_taken_off() -> None:
    scores, lengths, rivals = _matches(np.random.default_rng(0), 20_000, 0.0)
    assert scores.mean() > 0.6
    assert length_controlled_win_rate(scores, lengths, rivals)[0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("count", "skill"), [(60, 0.5), (200, -1.0)])
def test_its_interval_covers_the_truth_in_93_to_97_of_100_samples(count: int, skill: float) -> None:
    rng, truth, covered = np.random.default_rng(2), _logistic(np.array(skill)), 0
    for _ in range(1000):
        _, (low, high) = length_controlled_win_rate(*_matches(rng, count, skill))
        covered += bool(low <= truth <= high)
    assert 930 <= covered <= 970


def test_the_fit_is_the_regressions_maximum() -> None:
    """No other weights have a higher posterior: looked for on a grid, without a gradient."""
    scores, lengths, rivals = _matches(np.random.default_rng(1), 80, 0.7)
    x = np.tanh((lengths - rivals) / (lengths - rivals).std())

    def posterior(skill: np.ndarray, slope: np.ndarray) -> np.ndarray:
        z = skill[..., None] + slope[..., None] * x
        return (scores * z - np.logaddexp(0, z)).sum(axis=-1) + 0.5 * skill - np.logaddexp(0, skill) - 0.08 * slope**2

    skills, slopes = np.meshgrid(np.linspace(-3, 3, 601), np.linspace(-3, 3, 301), indexing="ij")
    best = np.unravel_index(posterior(skills, slopes).argmax(), skills.shape)
    assert length_controlled_win_rate(scores, lengths, rivals)[0] == pytest.approx(_logistic(skills[best]), abs=0.003)


def test_without_differences_in_length_it_is_the_win_rate() -> None:
    scores, same = np.array([1, 1, 0, 0.5, 1, 1, 0, 1.0] * 30), np.full(240, 7.0)
    rate, (low, high) = length_controlled_win_rate(scores, same, same)
    assert rate == pytest.approx(scores.mean(), abs=1e-3)
    assert (low, high) == pytest.approx(win_rate_interval(scores), abs=0.01)


def test_all_wins_are_finite_and_may_all_be_lengths() -> None:
    rate, (low, high) = length_controlled_win_rate(np.ones(20), np.arange(20.0), np.zeros(20))
    assert low < 0.5 < rate < high < 1
    rate, (low, high) = length_controlled_win_rate(np.ones(20), np.arange(20.0) % 7, np.full(20, 3.0))
    assert 0.5 < low < rate < high < 1
