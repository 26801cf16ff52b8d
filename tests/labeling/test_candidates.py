"""Verdicts on the completions of a prompt, and the pairs that are selected by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from mlx_dpo.judges.function_judge import FunctionJudge, ScoringFunctionJudge
from mlx_dpo.judges.judge import Comparison
from mlx_dpo.labeling.candidate_verdicts import CandidateVerdicts, judge_candidates, judge_requests
from mlx_dpo.labeling.pair_selection import select_pairs

NAN = float("nan")


class CountingJudge(FunctionJudge):
    def __init__(self, function: Callable[[str, str, str], Any]) -> None:
        super().__init__(function, "test")
        self.comparisons: list[Comparison] = []

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        self.comparisons += comparisons
        return super().verdicts(comparisons)


def longer(_: str, first: str, second: str) -> float:
    return 0.5 + 0.5 * np.sign(len(first) - len(second))


def test_every_two_different_completions_are_compared_in_both_orders() -> None:
    judge = CountingJudge(longer)
    completions = [["a", "bbb", "cc", "a"], ["same", "same"], [], ["x", "yy"]]
    prompts = ["p", "q", "r", "s"]
    first, same, empty, last = judge_candidates(judge, prompts, completions)
    expected = {(p, *order) for p, t in zip(prompts, completions, strict=True) for pair in combinations(set(t), 2)
                for order in (pair, pair[::-1])}  # fmt: skip
    assert {(c.prompt, c.first, c.second) for c in judge.comparisons} == expected and len(judge.comparisons) == len(
        expected
    ) == 8
    assert judge_requests(judge, prompts, completions) == judge.comparisons
    assert first.win_rates is not None and same.win_rates is not None
    assert first.win_rates.tolist() == [[0.5, 0, 0, 0.5], [1, 0.5, 1, 1], [1, 0, 0.5, 1], [0.5, 0, 0, 0.5]]
    assert first.scores.tolist() == pytest.approx([0.5 / 3, 1, 2 / 3, 0.5 / 3])
    assert same.win_rates.tolist() == [[0.5, 0.5], [0.5, 0.5]] and same.scores.tolist() == [0.5, 0.5]
    assert empty.scores.shape == (0,) and last.scores.tolist() == [0, 1]


def test_order_and_missing_verdicts_are_counted() -> None:
    swayed = judge_candidates(FunctionJudge(lambda *_: 1, "first"), ["p"], [["a", "b", "c"]])[0]
    assert swayed.num_swayed == 3 and swayed.scores.tolist() == [0.5] * 3 and not select_pairs(swayed, "all")
    silent = FunctionJudge(lambda _, a, b: None if "c" in (a, b) else float(a < b), "silent")
    partly, alone = judge_candidates(silent, ["p", "q"], [["a", "b", "c"], ["c", "d"]])
    assert partly.num_missing == 2 and alone.num_missing == 1
    np.testing.assert_array_equal(partly.scores, [1, 0, NAN])
    np.testing.assert_array_equal(alone.scores, [NAN, NAN])
    assert select_pairs(partly, "all") == [(0, 1, 1.0)] and not select_pairs(alone)


def test_a_scalar_judge_scores_each_completion_once() -> None:
    scored: list[str] = []

    def score(prompt: str, answer: str) -> float | None:
        scored.append(answer)
        return None if answer == "?" else float(len(answer))

    verdicts = judge_candidates(ScoringFunctionJudge(score, "length"), ["p", "q"], [["a", "bbb", "a", "?"], ["cc"]])
    assert scored == ["a", "bbb", "?", "cc"] and verdicts[0].win_rates is None and verdicts[0].num_missing == 1
    np.testing.assert_array_equal(verdicts[0].scores, [1, 3, 1, NAN])
    assert verdicts[0].wins(1, 0) == 1 and verdicts[0].wins(0, 2) == 0.5 and np.isnan(verdicts[0].wins(0, 3))


SCORES = CandidateVerdicts(np.array([1.0, 4.0, NAN, 2.0, 2.0, 0.0]))


def test_strategies_on_scores() -> None:
    assert select_pairs(SCORES) == [(1, 5, 4.0)]
    assert select_pairs(SCORES, "top-k", top_k=2) == [(1, 5, 4.0), (3, 0, 1.0)]
    assert select_pairs(SCORES, "top-k", top_k=9) == [(1, 5, 4.0), (3, 0, 1.0)]
    every = select_pairs(SCORES, "all")
    assert {pair[:2] for pair in every} == {(1, 0), (1, 3), (1, 4), (1, 5), (3, 0), (4, 0), (3, 5), (4, 5), (0, 5)}
    assert [pair.margin for pair in every] == sorted((pair.margin for pair in every), reverse=True)
    assert {pair[:2] for pair in select_pairs(SCORES, "all", 2.0)} == {(1, 5), (1, 0), (1, 3), (1, 4), (3, 5), (4, 5)}
    assert not select_pairs(SCORES, margin=4.1)


def test_there_is_no_pair_on_a_tie() -> None:
    for scores in ([], [1.0], [2.0, 2.0], [NAN, NAN]):
        assert select_pairs(CandidateVerdicts(np.array(scores)), "all") == []


def test_a_pair_needs_the_judges_own_preference() -> None:
    """A circle: each beats the next; and a win rate that a direct comparison contradicts."""
    circle = np.array([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]])
    assert select_pairs(CandidateVerdicts(np.full(3, 0.5), circle), "all") == []
    table = np.array([[0.5, 0, 1, 1], [1, 0.5, 0, 0], [0, 1, 0.5, 0.5], [0, 1, 0.5, 0.5]])
    verdicts = CandidateVerdicts(np.array([2, 1, 1.5, 1.5]) / 3, table)
    assert {pair[:2] for pair in select_pairs(verdicts, "all")} == {(0, 2), (0, 3), (2, 1), (3, 1)}


def test_length_control_drops_pairs_that_length_may_have_won() -> None:
    verdicts = CandidateVerdicts(np.array([1.0, 2.0, 2.0, 0.0]))
    lengths = [10, 200, 20, 100]
    assert select_pairs(verdicts, lengths=lengths, length_penalty=0.01) == [(2, 3, pytest.approx(2.8))]
    every = select_pairs(verdicts, "all", lengths=lengths, length_penalty=0.01)
    assert {pair[:2] for pair in every} == {(0, 3), (1, 3), (2, 0), (2, 3)}  # not (1, 0), nor the tie (2, 1)
