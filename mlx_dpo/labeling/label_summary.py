"""What a judge's verdicts amount to: counts, lengths of what it prefers, agreement with people."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from mlx_dpo.labeling.candidate_verdicts import CandidateVerdicts
from mlx_dpo.labeling.human_agreement import HumanAgreement
from mlx_dpo.labeling.label_settings import LabelSettings
from mlx_dpo.labeling.labelled_rows import completion_labels, selected_pairs
from mlx_dpo.labeling.pair_selection import select_pairs
from mlx_dpo.labeling.rows_to_label import RowToLabel
from mlx_dpo.utils.statistics import win_rate_interval


class LabelTally:
    """Counts what `label` reports, row by row.

    Args:
        settings: of `label`.
    """

    def __init__(self, settings: LabelSettings) -> None:
        self.settings = settings
        self.agreement = HumanAgreement()
        self.counts = dict.fromkeys(
            (
                "prompts",
                "completions",
                "empty",
                "truncated",
                "pairs",
                "prompts_without_pair",
                "labelled_true",
                "labelled_false",
                "ties",
                "no_verdict",
                "swayed_by_order",
            ),
            0,
        )
        self.lengths = list[tuple[int, int]]()

    def add(self, row: RowToLabel, verdicts: CandidateVerdicts) -> None:
        """Count the verdicts on a row."""
        distinct = list({text: i for i, text in reversed(list(enumerate(row.texts)))}.values())
        wins = [verdicts.wins(i, j) for i, j in combinations(sorted(distinct), 2)]
        is_pairs = self.settings.format == "pairs"
        pairs = selected_pairs(row, verdicts, self.settings) if is_pairs else select_pairs(verdicts, "all")
        self.lengths += [(len(row.texts[pair.chosen]), len(row.texts[pair.rejected])) for pair in pairs]
        self.agreement.add(self.counts["prompts"], row, verdicts, self.settings)
        self._count("prompts", 1)
        self._count("completions", len(row.texts))
        self._count("empty", row.num_empty)
        self._count("truncated", row.num_truncated)
        self._count("pairs", len(pairs))
        self._count("prompts_without_pair", not pairs)
        self._count("ties", wins.count(0.5))
        self._count("no_verdict", verdicts.num_missing)
        self._count("swayed_by_order", verdicts.num_swayed)
        if self.settings.format == "labelled":
            labels = completion_labels(verdicts, self.settings)
            self._count("labelled_true", labels.count(True))
            self._count("labelled_false", labels.count(False))

    @property
    def summary(self) -> dict[str, Any]:
        """The counts; the lengths of preferred and other completions; and the agreement with people.

        `ties` and `swayed_by_order` count comparisons of two different completions, `no_verdict` those without a
        verdict or, of a scalar judge, completions without a score. `longer_preferred` is how often the longer of two
        completions was the preferred one, with its 95% interval.
        """
        lengths = np.array(self.lengths, np.float64).reshape(-1, 2)
        longer = 0.5 + 0.5 * np.sign(lengths[:, 0] - lengths[:, 1])
        has_pairs = len(lengths) > 0
        return {
            **self.counts,
            "mean_characters": {
                "chosen": float(lengths[:, 0].mean()) if has_pairs else float("nan"),
                "rejected": float(lengths[:, 1].mean()) if has_pairs else float("nan"),
            },
            "longer_preferred": float(longer.mean()) if has_pairs else float("nan"),
            "longer_preferred_interval": list(win_rate_interval(longer)),
            "agreement": self.agreement.summary,
        }

    def _count(self, name: str, count: int) -> None:
        self.counts[name] += int(count)
