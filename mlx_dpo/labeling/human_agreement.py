"""How far a judge agrees with people, on rows that have preferences or labels of theirs."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from mlx_dpo.labeling.candidate_verdicts import CandidateVerdicts
from mlx_dpo.labeling.label_settings import LabelSettings
from mlx_dpo.labeling.labelled_rows import completion_labels
from mlx_dpo.labeling.rows_to_label import RowToLabel
from mlx_dpo.utils.statistics import win_rate_interval


class HumanAgreement:
    """Collects what a judge and people think of the same completions.

    Attributes:
        preferences: [comparisons] of two completions that people prefer one of: 1 where the judge prefers it too, 0
            where it prefers the other one, 0.5 where it has a tie.
        groups: [comparisons] the number of the row of each.
        labels: [completions] (of people, of the judge).
    """

    def __init__(self) -> None:
        self.preferences, self.groups = list[float](), list[int]()
        self.labels = list[tuple[bool, bool]]()

    def add(self, index: int, row: RowToLabel, verdicts: CandidateVerdicts, settings: LabelSettings) -> None:
        """Add the verdicts on a row.

        Args:
            index: the number of the row.
            row: with people's grades or label, if it has them.
            verdicts: of the judge. Comparisons without a verdict are left out.
            settings: their threshold makes labels of scores; without one, labels are not compared.
        """
        for i, j in combinations(range(len(row.texts)), 2) if row.grades else ():
            assert row.grades is not None
            better, worse = (i, j) if row.grades[i] > row.grades[j] else (j, i)
            wins = verdicts.wins(better, worse)
            if row.grades[i] != row.grades[j] and row.texts[i] != row.texts[j] and not np.isnan(wins):
                self.preferences.append(wins)
                self.groups.append(index)
        if row.label is not None and settings.threshold is not None:
            label = completion_labels(verdicts, settings)[0]
            if label is not None:
                self.labels.append((row.label, label))

    @property
    def summary(self) -> dict[str, Any] | None:
        """The shares of agreement with their 95% intervals, and Cohen's kappa; None without labels of people."""
        kinds: dict[str, Any] = {}
        if self.preferences:
            values = np.array(self.preferences)
            kinds["preferences"] = _summary(values, self.groups, preference_kappa(values))
        if self.labels:
            people, judge = np.array(self.labels).T
            equal = (people == judge).astype(np.float64)
            kinds["labels"] = _summary(equal, list(range(len(equal))), label_kappa(people, judge))
        return kinds or None


def preference_kappa(wins: np.ndarray) -> float:
    """Cohen's kappa (1960) of preferences, where each two completions count in both orders.

    People prefer the first or the second completion with equal chance, a judge with t ties (1 - t) / 2 of the time
    each; so chance agreement is (1 - t) / 2. A tie of the judge is no agreement.

    Args:
        wins: [comparisons] 1 where the judge agrees with people, 0.5 for its ties, 0 where it does not.

    Returns:
        1 for full agreement, 0 for that of chance.
    """
    expected = (1 - float((wins == 0.5).mean())) / 2
    return (float((wins == 1).mean()) - expected) / (1 - expected)


def label_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa (1960) of two raters' labels.

    Args:
        first: [completions] bool.
        second: [completions] bool.

    Returns:
        1 for full agreement, 0 for that of chance; NaN if both always give the same label.
    """
    rate, other_rate = first.mean(), second.mean()
    expected = float(rate * other_rate + (1 - rate) * (1 - other_rate))
    return float((first == second).mean() - expected) / (1 - expected) if expected < 1 else float("nan")


def _summary(values: np.ndarray, groups: list[int], kappa: float) -> dict[str, Any]:
    return {
        "compared": len(values),
        "agreement": float(values.mean()),
        "interval": list(win_rate_interval(values, groups=groups)),
        "kappa": kappa,
    }
