"""Judges the answers of two models to the same prompts, and summarizes the verdicts as win rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.evaluation.length_control import length_controlled_win_rate
from mlx_dpo.judges.both_orders import judge_both_orders
from mlx_dpo.judges.judge import Comparison, Judge
from mlx_dpo.utils.statistics import win_rate_interval


@dataclass(frozen=True)
class HeadToHeadResult:
    """Verdicts on the tuned model's answers against the base model's.

    Attributes:
        judge: its name.
        comparisons: with the tuned model's answer first.
        scores: [comparisons] from 0, the base model wins, to 1, the tuned model wins; the mean over both orders of the
            answers. NaN if a verdict could not be read.
        order_flipped: [comparisons] whether the winner depends on the order.
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
        tuned_lengths = np.array([len(comparison.first) for comparison in self.comparisons], float)
        base_lengths = np.array([len(comparison.second) for comparison in self.comparisons], float)
        controlled, interval = length_controlled_win_rate(scores, tuned_lengths[judged], base_lengths[judged])
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
            "mean_characters": {"base": float(base_lengths.mean()), "tuned": float(tuned_lengths.mean())},
            "answers": [
                {
                    "prompt": comparison.prompt,
                    "base": comparison.second,
                    "tuned": comparison.first,
                    "score": float(score),
                }
                for comparison, score in zip(self.comparisons, self.scores, strict=True)
            ],
        }


def judge_head_to_head(
    prompts: Sequence[TextOrMessages], base: Sequence[str], tuned: Sequence[str], judge: Judge
) -> HeadToHeadResult:
    """Have a judge compare the answers of two models, in both orders if the order may matter to it.

    Equal answers are ties, without asking the judge.

    Args:
        prompts: that both models answered.
        base: [prompts] answers of the base model.
        tuned: [prompts] answers of the tuned model.
        judge: gives the verdicts.

    Raises:
        UserError: the judge fails.
    """
    comparisons = [Comparison(*answers) for answers in zip(prompts, tuned, base, strict=True)]
    return HeadToHeadResult(judge.name, comparisons, *judge_both_orders(judge, comparisons))
