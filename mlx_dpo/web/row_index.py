"""The rows of the files of verdicts in memory, for lists that are searched and filtered while a person types."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mlx_dpo.errors import UserError
from mlx_dpo.utils.statistics import win_rate_interval
from mlx_dpo.web.preference_file import FileStamp, PreferenceFile
from mlx_dpo.web.stored_row import BROKEN, LABEL, ROW_KINDS, StoredRow, read_stored_row
from mlx_dpo.web.verdicts import VerdictFiles

_KEPT_FILTERS = 16
_MIXED = "Is a {}, where the first row of this file is a {}: `train` takes a file of one or the other."
_EXAMPLE_NAMES = {True: "label of one answer", False: "pair"}


@dataclass(frozen=True)
class RowFilter:
    """Which rows are listed; those that pass all conditions.

    Attributes:
        search: words that all stand in the row's texts, in any order and in capitals or not.
        kind: one of `ROW_KINDS`; empty for all.
        labeller: name; empty for all.
        edited: only rows with a text that a person wrote.
        warned: only rows with a warning or a problem.
        duplicate: only rows whose prompt and completions occur more than once.
    """

    search: str = ""
    kind: str = ""
    labeller: str = ""
    edited: bool = False
    warned: bool = False
    duplicate: bool = False

    def apply(self, rows: Iterable[ListedRow]) -> list[ListedRow]:
        """The rows that pass. Each condition is a pass of its own, since one for all takes three times as long."""
        if self.kind:
            rows = [listed for listed in rows if listed.row.kind == self.kind]
        if self.labeller:
            rows = [listed for listed in rows if listed.row.labeller == self.labeller]
        if self.edited:
            rows = [listed for listed in rows if listed.row.is_edited]
        if self.warned:
            rows = [listed for listed in rows if listed.is_warned]
        if self.duplicate:
            rows = [listed for listed in rows if listed.copies > 1]
        for word in self.search.split():
            rows = [listed for listed in rows if word in listed.row.searched]
        return list(rows)

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> RowFilter:
        """Read the filter of an address. Raises `UserError`."""
        kind = query.get("kind", "")
        if kind not in ("", *ROW_KINDS):
            raise UserError(f"must be one of {', '.join(ROW_KINDS)}", field="kind")
        flags = {field.name: query.get(field.name) == "1" for field in fields(cls) if field.type == "bool"}
        return cls(" ".join(query.get("search", "").lower().split()), kind, query.get("labeller", ""), **flags)


@dataclass(frozen=True, slots=True)
class ListedRow:
    """A row at its place.

    Attributes:
        file: "preferences" or "labels".
        line: number of its line, from 1.
        row: what it holds.
        copies: rows with the same prompt and completions, itself among them.
        is_mixed: whether it is a pair in a file of labels, or the other way round.
    """

    file: str
    line: int
    row: StoredRow
    copies: int
    is_mixed: bool

    def warnings(self) -> list[str]:
        """What is wrong with it, or may be, in sentences."""
        sentences = [sentence for _, sentence in self.row.warnings]
        if self.row.problem:
            sentences.append(self.row.problem)
        if self.is_mixed:
            is_label = self.row.kind == LABEL
            sentences.append(_MIXED.format(_EXAMPLE_NAMES[is_label], _EXAMPLE_NAMES[not is_label]))
        return sentences

    @property
    def is_warned(self) -> bool:
        """Whether `warnings` has any."""
        return bool(self.row.warnings or self.row.problem or self.is_mixed)


class RowIndex:
    """The rows of both files, read again when a file has changed; lines that it knows are not parsed again."""

    def __init__(self, verdicts: VerdictFiles) -> None:
        """Start without rows.

        Args:
            verdicts: the files.
        """
        self.files: dict[str, PreferenceFile] = {"preferences": verdicts.preferences, "labels": verdicts.labels}
        self._lock = threading.Lock()
        self._stamps: dict[str, FileStamp] = {}
        self._known: dict[bytes, StoredRow] = {}
        self._rows: list[ListedRow] = []
        self._filtered: dict[RowFilter, list[ListedRow]] = {}
        self._summary: dict[str, Any] | None = None
        self._version = 0

    def rows(self, conditions: RowFilter | None = None) -> tuple[int, list[ListedRow]]:
        """The rows that pass a filter, in the order of the files.

        Args:
            conditions: the filter; None for all rows.

        Returns:
            A number that changes with the files, and the rows.

        Raises:
            UserError: a file can't be read.
        """
        with self._lock:
            self._refresh()
            if conditions is None:
                return self._version, self._rows
            if conditions not in self._filtered:
                while len(self._filtered) >= _KEPT_FILTERS:
                    del self._filtered[next(iter(self._filtered))]
                self._filtered[conditions] = conditions.apply(self._rows)
            return self._version, self._filtered[conditions]

    def summary(self) -> dict[str, Any]:
        """Counts of all rows, and how far verdicts on what was shown twice agree. Raises `UserError`."""
        with self._lock:
            self._refresh()
            if self._summary is None:
                self._summary = {"version": self._version, **_summarize(self._rows)}
            return self._summary

    def _refresh(self) -> None:
        stamps = {name: file.stamp() for name, file in self.files.items()}
        if stamps == self._stamps:
            return
        listed: list[tuple[str, int, StoredRow]] = []
        known: dict[bytes, StoredRow] = {}
        for name, file in self.files.items():
            stamps[name], lines = file.lines()
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    row = known[line] = self._known.get(line) or read_stored_row(line)
                    listed.append((name, number, row))
        copies = Counter(row.content_key for _, _, row in listed)
        kinds = {name: next((_is_label(r) for f, _, r in listed if f == name and r.judgments), None) for name in stamps}
        self._rows = [
            ListedRow(name, number, row, copies[row.content_key], bool(row.judgments) and _is_label(row) != kinds[name])
            for name, number, row in listed
        ]
        self._known, self._stamps, self._version = known, stamps, self._version + 1
        self._filtered, self._summary = {}, None


def _is_label(row: StoredRow) -> bool:
    return row.kind == LABEL


def _summarize(rows: Sequence[ListedRow]) -> dict[str, Any]:
    kinds = Counter(listed.row.kind for listed in rows)
    labellers = Counter(listed.row.labeller for listed in rows if listed.row.labeller)
    return {
        "rows": len(rows),
        "kinds": {kind: kinds[kind] for kind in ROW_KINDS},
        "labellers": dict(labellers.most_common()),
        "edited": sum(listed.row.is_edited for listed in rows),
        "warned": sum(listed.is_warned for listed in rows),
        "duplicates": sum(listed.copies > 1 for listed in rows),
        "agreement": repeat_agreement(rows),
    }


def repeat_agreement(rows: Sequence[ListedRow]) -> dict[str, Any] | None:
    """How often a person judged as the time before, where the same was shown again; None where nothing was."""
    repeats = list(_repeats(rows))
    if not repeats:
        return None
    same, subjects = zip(*repeats, strict=True)
    low, high = win_rate_interval(list(map(float, same)), groups=subjects)
    return {"compared": len(same), "same": sum(same), "share": sum(same) / len(same), "interval": [low, high]}


def _repeats(rows: Sequence[ListedRow]) -> Iterator[tuple[bool, bytes]]:
    last: dict[tuple[str, bytes], str] = {}
    for listed in rows:
        if listed.row.kind == BROKEN:
            continue
        for judgment in listed.row.judgments:
            key = (listed.row.labeller, judgment.subject)
            if key in last:
                yield last[key] == judgment.verdict, judgment.subject
            last[key] = judgment.verdict
