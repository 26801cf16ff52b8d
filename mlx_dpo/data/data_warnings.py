"""Warnings about rows that can be trained on but may not be what their author meant: counted, with the first lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlx_dpo.errors import Where

NUM_FIRST_LOCATIONS = 5


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


@dataclass
class Occurrences:
    """How many there were of something, and where the first few are."""

    count: int = 0
    first: list[Where] = field(default_factory=list)

    def add(self, where: Where) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < NUM_FIRST_LOCATIONS:
            self.first.append(where)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"count": self.count, "first": [{"file": w.file, "line": w.line} for w in self.first]}


@dataclass
class DataWarnings:
    """Warnings about the rows of one or more files, by kind."""

    by_kind: dict[WarningKind, Occurrences] = field(default_factory=dict)

    def add(self, kind: WarningKind, where: Where) -> None:
        """Count a row."""
        self.by_kind.setdefault(kind, Occurrences()).add(where)

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
    return f"{rows}: {kind.message}{located}. {kind.hint}"
