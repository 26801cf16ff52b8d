"""Two models' answers to the same prompts, judged head to head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.evaluation.length_control import length_controlled_win_rate
from mlx_dpo.judges.judge import Comparison, Judge
from mlx_dpo.utils.statistics import win_rate_interval


@dataclass(frozen=True)
class HeadToHeadResult:
    """Matches of the tuned model's answers (first) against the base's.

    Attributes:
        scores: [matches], from 0, the base has won, to 1, the tuned one has, the mean over both orders; NaN where a
            verdict could not be read.
        swayed: [matches], whether the other order would have had another winner.
    """

    judge: str
    comparisons: list[Comparison]
    scores: np.ndarray
    order_flipped: np.ndarray

    @property
    def summary(self) -> dict[str, Any]:
        """Win rates with their 95% intervals, and all answers."""
        judged = ~np.isnan(self.scores)
        scores = self.scores[judged]
        tuned, base = (np.array([len(answer) for answer in side], float) for side in self._sides)
        controlled, interval = length_controlled_win_rate(scores, tuned[judged], base[judged])
        return {
            "judge": self.judge,
            "prompts": len(self.comparisons),
            "judged": len(scores),
            "wins": int((scores > 0.5).sum()),
            "ties": int((scores == 0.5).sum()),
            "losses": int((scores < 0.5).sum()),
            "swayed_by_order": int(self.order_flipped.sum()),
            "win_rate": float(scores.mean()) if len(scores) else float("nan"),
            "win_rate_interval": list(win_rate_interval(scores)),
            "length_controlled_win_rate": controlled,
            "length_controlled_interval": list(interval),
            "mean_characters": {"base": float(base.mean()), "tuned": float(tuned.mean())},
            "answers": [
                {"prompt": match.prompt, "base": match.second, "tuned": match.first, "score": float(score)}
                for match, score in zip(self.comparisons, self.scores, strict=True)
            ],
        }

    @property
    def _sides(self) -> tuple[list[str], list[str]]:
        return [match.first for match in self.comparisons], [match.second for match in self.comparisons]


def judge_head_to_head(
    prompts: Sequence[TextOrMessages], base: Sequence[str], tuned: Sequence[str], judge: Judge
) -> HeadToHeadResult:
    """Have a judge compare two models' answers, each two in both orders. Equal ones are ties, and not asked about."""
    matches = [Comparison(*three) for three in zip(prompts, tuned, base, strict=True)]
    scores, swayed = np.full(len(matches), 0.5), np.zeros(len(matches), bool)
    asked = [i for i, match in enumerate(matches) if match.first != match.second]
    in_order = [matches[i] for i in asked]
    verdicts = judge.verdicts(
        [*in_order, *(match.swapped for match in in_order)] if judge.order_sensitive else in_order
    )
    first = np.array(verdicts[: len(asked)], np.float64)
    second = 1 - np.array(verdicts[len(asked) :], np.float64) if judge.order_sensitive else first
    scores[asked], swayed[asked] = (first + second) / 2, np.sign(first - 0.5) * np.sign(second - 0.5) < 0
    return HeadToHeadResult(judge.name, matches, scores, swayed)
