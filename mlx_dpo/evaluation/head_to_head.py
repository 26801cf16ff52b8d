"""Two models' answers to the same prompts, judged head to head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.data.conversations import Turns
from mlx_dpo.evaluation.length_control import length_controlled
from mlx_dpo.judges.judge import Judge, Match
from mlx_dpo.utils.statistics import win_rate_interval


@dataclass(frozen=True)
class HeadToHead:
    """Matches of the tuned model's answers (first) against the base's.

    Attributes:
        scores: [matches], from 0, the base has won, to 1, the tuned one has, the mean over both orders; NaN where a
            verdict could not be read.
        swayed: [matches], whether the other order would have had another winner.
    """

    judge: str
    matches: list[Match]
    scores: np.ndarray
    swayed: np.ndarray

    @property
    def summary(self) -> dict[str, Any]:
        """Win rates with their 95% intervals, and all answers."""
        judged = ~np.isnan(self.scores)
        scores = self.scores[judged]
        tuned, base = (np.array([len(answer) for answer in side], float) for side in self._sides)
        controlled, interval = length_controlled(scores, tuned[judged], base[judged])
        return {
            "judge": self.judge,
            "prompts": len(self.matches),
            "judged": len(scores),
            "wins": int((scores > 0.5).sum()),
            "ties": int((scores == 0.5).sum()),
            "losses": int((scores < 0.5).sum()),
            "swayed_by_order": int(self.swayed.sum()),
            "win_rate": float(scores.mean()) if len(scores) else float("nan"),
            "win_rate_interval": list(win_rate_interval(scores)),
            "length_controlled_win_rate": controlled,
            "length_controlled_interval": list(interval),
            "mean_characters": {"base": float(base.mean()), "tuned": float(tuned.mean())},
            "answers": [
                {"prompt": match.prompt, "base": match.second, "tuned": match.first, "score": float(score)}
                for match, score in zip(self.matches, self.scores, strict=True)
            ],
        }

    @property
    def _sides(self) -> tuple[list[str], list[str]]:
        return [match.first for match in self.matches], [match.second for match in self.matches]


def head_to_head(prompts: Sequence[Turns], base: Sequence[str], tuned: Sequence[str], judge: Judge) -> HeadToHead:
    """Have a judge compare two models' answers, each two in both orders. Equal ones are ties, and not asked about."""
    matches = [Match(*three) for three in zip(prompts, tuned, base, strict=True)]
    scores, swayed = np.full(len(matches), 0.5), np.zeros(len(matches), bool)
    asked = [i for i, match in enumerate(matches) if match.first != match.second]
    in_order = [matches[i] for i in asked]
    verdicts = judge.verdicts([*in_order, *(match.swapped for match in in_order)] if judge.sees_order else in_order)
    first = np.array(verdicts[: len(asked)], np.float64)
    second = 1 - np.array(verdicts[len(asked) :], np.float64) if judge.sees_order else first
    scores[asked], swayed[asked] = (first + second) / 2, np.sign(first - 0.5) * np.sign(second - 0.5) < 0
    return HeadToHead(judge.name, matches, scores, swayed)
