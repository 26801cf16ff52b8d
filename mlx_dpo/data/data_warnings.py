"""Warnings about rows that can be trained on but may not be what their author meant: counted, with the first lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlx_dpo.data.json_values import printable
from mlx_dpo.errors import Where

NUM_FIRST_LOCATIONS = 5
_MAX_NAMES, _MAX_LISTED = 1000, 10


@dataclass(frozen=True)
class WarningKind:
    """A kind of warning.

    Attributes:
        key: its name in JSON, e.g. "equal_completions".
        message: what is the case, a phrase that follows "N rows: ".
        hint: what to do about it.
    """

    key: str
    message: str
    hint: str


@dataclass(frozen=True)
class RowWarning:
    """A warning about a row.

    Attributes:
        kind: what is the case.
        names: the columns that it is about, if it is about some.
    """

    kind: WarningKind
    names: tuple[str, ...] = ()


class HasWarnings(Protocol):
    """An example of a row."""

    @property
    def warnings(self) -> tuple[RowWarning, ...]:
        """About its row."""


@dataclass
class Occurrences:
    """How many rows something was found in, and where the first few are.

    Attributes:
        count: rows.
        first: locations of the first ones, at most `NUM_FIRST_LOCATIONS`.
        names: of those that are about columns, how many are about each of them.
    """

    count: int = 0
    first: list[Where] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)

    def add(self, where: Where, names: tuple[str, ...] = ()) -> None:
        """Count a row at `where`, and the columns `names` that the finding is about."""
        self.count += 1
        if len(self.first) < NUM_FIRST_LOCATIONS:
            self.first.append(where)
        for name in names:
            if name in self.names or len(self.names) < _MAX_NAMES:
                self.names[name] += 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = {"columns": dict(self.names.most_common())} if self.names else {}
        return {"count": self.count, "first": [{"file": w.file, "line": w.line} for w in self.first], **names}


@dataclass
class DataWarnings:
    """Warnings about the rows of one or more files, by kind."""

    by_kind: dict[WarningKind, Occurrences] = field(default_factory=dict)

    def add(self, kind: WarningKind, where: Where, names: tuple[str, ...] = ()) -> None:
        """Count a row with a warning.

        Args:
            kind: of the warning.
            where: the row's location.
            names: the columns that the warning is about.
        """
        self.by_kind.setdefault(kind, Occurrences()).add(where, names)

    def add_examples(self, examples: Iterable[HasWarnings], where: Where) -> None:
        """Count the warnings that the examples of a row carry."""
        for example in examples:
            for warning in example.warnings:
                self.add(warning.kind, where, warning.names)

    def count(self, kind: WarningKind) -> Occurrences:
        """The rows with a kind of warning."""
        return self.by_kind.get(kind, Occurrences())

    def sentences(self) -> list[str]:
        """One sentence a kind: how many rows, what is the case, the first lines, what to do."""
        return [_sentence(kind, occurrences) for kind, occurrences in self.by_kind.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain values by kind."""
        return {
            kind.key: {**occurrences.to_json(), "message": kind.message, "hint": kind.hint}
            for kind, occurrences in self.by_kind.items()
        }


def _sentence(kind: WarningKind, occurrences: Occurrences) -> str:
    rows = "1 row" if occurrences.count == 1 else f"{occurrences.count:,} rows"
    lines = [str(where.line) for where in occurrences.first if where.line]
    located = f" (first lines: {', '.join(lines)})" if lines else ""
    return f"{rows}: {describe(kind, occurrences)}{located}. {kind.hint}"


def describe(kind: WarningKind, occurrences: Occurrences) -> str:
    """A kind's message, with the columns that it is about."""
    if not occurrences.names:
        return kind.message
    listed = ", ".join(printable(name, 40) for name, _ in occurrences.names.most_common(_MAX_LISTED))
    return f"{kind.message}: {listed}{', ...' if len(occurrences.names) > _MAX_LISTED else ''}"
