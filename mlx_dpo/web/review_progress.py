"""Which comparison of a reviewed file a person judges next, and what the verdicts amount to."""

from __future__ import annotations

import math
import shlex
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.labeling.verdict_merging import LABELLER_COLUMN, Key, row_votes, vote_agreement
from mlx_dpo.web.parsed_lines import ParsedLines
from mlx_dpo.web.preference_file import parse_row
from mlx_dpo.web.review_file import ReviewComparison, ReviewFile, row_key
from mlx_dpo.web.row_index import RowFilter, RowIndex, repeat_agreement
from mlx_dpo.web.verdicts import HumanVerdict, VerdictFiles, is_integer

REPEAT_AFTER = 20  # verdicts on others, before a comparison is shown again
REVIEW_KINDS = ("choice", "tie", "both_bad")
BOTH_BAD_COLUMN = "both_bad"  # of a tie between completions of which none is good


@dataclass(frozen=True)
class ShownComparison:
    """A comparison on the page of a person.

    Attributes:
        index: its number in the file's comparisons.
        count: how often the person has judged it before.
    """

    index: int
    count: int


@dataclass(frozen=True)
class _JudgedComparison:
    """What a line of the file of verdicts is about: a person's name and the key of a comparison."""

    labeller: str | None
    key: str | None


class ReviewProgress:
    """A person's verdicts on a file. All it knows is in the file of verdicts, so that a restart changes nothing."""

    def __init__(self, review: ReviewFile, verdicts: VerdictFiles, repeat: float = 0.0) -> None:
        """Join the parts.

        Args:
            review: the file.
            verdicts: receive the verdicts; their labeller is the person.
            repeat: share of the comparisons, 0 to 1, that are shown a second time.
        """
        self.review, self.verdicts, self.repeat = review, verdicts, repeat
        self.skipped: set[ShownComparison] = set()
        self._lock = threading.Lock()
        self._indices = {comparison.key: i for i, comparison in enumerate(review.comparisons)}
        self._judged = ParsedLines(verdicts.preferences, _read_judged)
        self._repeated: dict[str, frozenset[int]] = {}  # comparisons that a person gets a second time

    @property
    def labeller(self) -> str:
        """The name of the person. Raises `UserError` while it is unknown."""
        if not self.verdicts.labeller:
            raise UserError("who judges is not known yet", field="labeller")
        return self.verdicts.labeller

    def comparison(self, shown: ShownComparison) -> ReviewComparison:
        """The comparison that is shown."""
        return self.review.comparisons[shown.index]

    def to_json(self, shown: ShownComparison) -> dict[str, Any]:
        """What the page sends back with a verdict, so that `from_json` knows what the person saw, in which order."""
        return {"labeller": self.labeller, "key": self.comparison(shown).key, "count": shown.count}

    def from_json(self, value: Any) -> ShownComparison:
        """The inverse of `to_json`.

        Raises:
            UserError: it is none, or the page was opened for another person or another file than the server is now.
        """
        value = value if isinstance(value, dict) else {}
        key, count = value.get("key"), value.get("count")
        if not isinstance(key, str) or not is_integer(count):
            raise UserError("must be the key and the count of a comparison", field="comparison")
        if value.get("labeller") != self.labeller:
            raise UserError(f"{self.labeller} judges here now", field="labeller", hint="Reload the page.")
        index = self._indices.get(key)
        if index is None:
            raise UserError(f"is not in {self.review.path}", field="comparison", hint="Reload the page.")
        return ShownComparison(index, count)

    def add(self, shown: ShownComparison, value: Mapping[str, Any]) -> list[str]:
        """Write a verdict: a choice, a tie, or that none is good, which is a tie with a column that says so.

        Args:
            shown: the comparison, as it was shown.
            value: `kind`, and the `index` of the better completion on the page.

        Returns:
            The ids of its rows.

        Raises:
            UserError: it is no verdict, was given already, or can't be written.
        """
        comparison = self.comparison(shown)
        completions = comparison.shown_to(self.labeller, shown.count)
        verdict = HumanVerdict.on_completions(
            value, comparison.prompt, completions, kinds=REVIEW_KINDS, columns=comparison.columns
        )
        if verdict.kind == "both_bad":
            verdict = replace(verdict, kind="tie", columns={**verdict.columns, BOTH_BAD_COLUMN: True})
        with self._lock:
            if self._history().count(shown.index) != shown.count:
                raise UserError("this has a verdict already, perhaps of another tab", hint="Skip it (space).")
            return self.verdicts.add(verdict)

    def next(self) -> ShownComparison | None:
        """The comparison that is next: one to repeat, or else the first without a verdict; None at the end."""
        history = self._history()
        counts = Counter(history)
        due = [i for i in self._to_repeat(counts) if i not in history[-REPEAT_AFTER:]]
        rest = [i for i in range(len(self.review.comparisons)) if not counts[i]]
        candidates = (ShownComparison(i, counts[i]) for i in (*due, *rest, *self._to_repeat(counts)))
        return next((shown for shown in candidates if shown not in self.skipped), None)

    def summary(self) -> dict[str, Any]:
        """How many comparisons there are, how many are judged, and how many rows can't be."""
        counts = Counter(self._history() if self.verdicts.labeller else [])
        repeated = self._repeated_indices() if self.verdicts.labeller else frozenset()
        return {
            "file": self.review.path,
            "labeller": self.verdicts.labeller,
            "comparisons": len(self.review.comparisons) + len(repeated),
            "judged": sum(min(count, 2 if i in repeated else 1) for i, count in counts.items()),
            "skipped": sum(counts[shown.index] == shown.count for shown in self.skipped),
            "single": self.review.num_single,
            "bad": self.review.num_bad,
            "problem": self.review.problem,
        }

    def result(self) -> dict[str, Any]:
        """How far the person agrees with the file and with their own earlier verdicts, and the command to type next."""
        output = self.verdicts.preferences
        rows = [row for line in output.lines()[1] if (row := parse_row(line)) is not None]
        votes: dict[Key, int] = {}
        for row in rows:
            with suppress(RowError):
                if row.get(LABELLER_COLUMN) == self.labeller:
                    votes |= {key: vote for key, _, vote in row_votes(row, Where(str(output.path)))}
        agreement = vote_agreement(self.review.votes, votes)
        if agreement and math.isnan(agreement["kappa"]):
            agreement["kappa"] = None
        _, listed = RowIndex(self.verdicts).rows(RowFilter(labeller=self.labeller))
        merged = output.path.with_name(f"{output.path.stem}.merged.jsonl")
        command = ["mlx-dpo", "label", "--merge", str(output.path), "--output", str(merged)]
        return {"agreement": agreement, "repeated": repeat_agreement(listed), "command": shlex.join(command)}

    def _to_repeat(self, counts: Counter[int]) -> list[int]:
        return [i for i in sorted(self._repeated_indices()) if counts[i] == 1]

    def _repeated_indices(self) -> frozenset[int]:
        if self.labeller not in self._repeated:
            comparisons = enumerate(self.review.comparisons if self.repeat else ())
            self._repeated[self.labeller] = frozenset(
                i for i, comparison in comparisons if comparison.is_repeated_for(self.labeller, self.repeat)
            )
        return self._repeated[self.labeller]

    def _history(self) -> list[int]:
        """The comparisons that have verdicts, in the order of these."""
        judged = (line.key for line in self._judged.values() if line.labeller == self.labeller)
        return [self._indices[key] for key in judged if key in self._indices]


def _read_judged(line: bytes) -> _JudgedComparison:
    row = parse_row(line) or {}
    return _JudgedComparison(row.get(LABELLER_COLUMN), row_key(row))
