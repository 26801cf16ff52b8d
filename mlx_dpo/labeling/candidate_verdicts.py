"""A judge's verdicts on any number of completions of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.judges.both_orders import judge_both_orders, requests
from mlx_dpo.judges.judge import Answer, Comparison, Judge


@dataclass(frozen=True)
class CandidateVerdicts:
    """Verdicts on n completions of a prompt.

    Attributes:
        scores: [n] float64, the judge's scores; of a judge that compares, the mean win rate against the other
            completions, equal ones included as ties. NaN without a verdict.
        win_rates: [n, n] float64, from 0 to 1, of each completion against each other one over both orders: 0.5 on the
            diagonal and for equal completions, NaN without a verdict. None if the judge is scalar.
        num_swayed: comparisons whose winner depends on the order of the completions.
        num_missing: comparisons, or scores, of different completions without a verdict.
    """

    scores: np.ndarray
    win_rates: np.ndarray | None = None
    num_swayed: int = 0
    num_missing: int = 0

    def wins(self, i: int, j: int) -> float:
        """Whether the judge prefers completion i to completion j: 1, 0.5 for a tie, 0; NaN without a verdict."""
        if self.win_rates is not None:
            difference = float(self.win_rates[i, j]) - 0.5
        else:
            difference = float(self.scores[i] - self.scores[j])
        return 0.5 + 0.5 * float(np.sign(difference))


def judge_candidates(
    judge: Judge, prompts: Sequence[TextOrMessages], completions: Sequence[Sequence[str]]
) -> list[CandidateVerdicts]:
    """Judge the completions of each prompt: every one, if the judge is scalar; else every two of them.

    Completions with the same text are judged once. A judge that the order may sway compares in both orders, so n
    different completions take n calls of a scalar judge, and n * (n - 1) of one that compares. All prompts are judged
    in one call of the judge, which may run them at the same time.

    Args:
        judge: gives scores or verdicts.
        prompts: texts, or messages.
        completions: [prompts] lists of completions.

    Returns:
        [prompts] verdicts.

    Raises:
        UserError: the judge fails.
    """
    distinct = [list(dict.fromkeys(texts)) for texts in completions]
    if judge.is_scalar:
        scores = iter(judge.scores(_answers(prompts, distinct)))
        by_text = [{text: next(scores) for text in texts} for texts in distinct]
        return [_from_scores(texts, known) for texts, known in zip(completions, by_text, strict=True)]
    comparisons = _comparisons(prompts, distinct)
    judged = judge_both_orders(judge, comparisons)
    verdicts, start = [], 0
    for texts, different in zip(completions, distinct, strict=True):
        count = len(different) * (len(different) - 1) // 2
        part = slice(start, start + count)
        start += count
        verdicts.append(_from_comparisons(texts, different, judged.win_rates[part], judged.order_flipped[part]))
    return verdicts


def judge_requests(
    judge: Judge, prompts: Sequence[TextOrMessages], completions: Sequence[Sequence[str]]
) -> list[Answer] | list[Comparison]:
    """What `judge_candidates` has the judge score or compare."""
    distinct = [list(dict.fromkeys(texts)) for texts in completions]
    return _answers(prompts, distinct) if judge.is_scalar else requests(judge, _comparisons(prompts, distinct))


def _answers(prompts: Sequence[TextOrMessages], distinct: Sequence[list[str]]) -> list[Answer]:
    return [Answer(prompt, text) for prompt, texts in zip(prompts, distinct, strict=True) for text in texts]


def _comparisons(prompts: Sequence[TextOrMessages], distinct: Sequence[list[str]]) -> list[Comparison]:
    """Every two different completions of each prompt."""
    return [
        Comparison(prompt, first, second)
        for prompt, texts in zip(prompts, distinct, strict=True)
        for first, second in combinations(texts, 2)
    ]


def _from_scores(texts: Sequence[str], known: dict[str, float | None]) -> CandidateVerdicts:
    scores = np.array([known[text] for text in texts], np.float64)
    return CandidateVerdicts(scores, num_missing=sum(score is None for score in known.values()))


def _from_comparisons(
    texts: Sequence[str], distinct: list[str], win_rates: np.ndarray, order_flipped: np.ndarray
) -> CandidateVerdicts:
    """Spread the verdicts on every two different completions over all."""
    first, second = np.triu_indices(len(distinct), 1)  # in the order of `combinations`
    table = np.full((len(distinct), len(distinct)), 0.5)
    table[first, second], table[second, first] = win_rates, 1 - win_rates
    positions = [distinct.index(text) for text in texts]
    table = table[np.ix_(positions, positions)]
    against_others = np.where(np.eye(len(texts), dtype=bool), np.nan, table)
    counts = (~np.isnan(against_others)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        scores = np.nansum(against_others, axis=1) / np.where(counts, counts, np.nan)
    return CandidateVerdicts(scores, table, int(order_flipped.sum()), int(np.isnan(win_rates).sum()))
