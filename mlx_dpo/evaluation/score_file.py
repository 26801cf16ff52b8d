"""The JSONL file that `score` writes, one line per row, and resumes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlx_dpo.data.example_sources import ExampleSource
from mlx_dpo.data.examples import Candidates, Example
from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.appended_rows import AppendedRows, to_json_bytes

ADDED_KEYS = ("rewards", "best", "ranking", "scorer")  # of a line; they replace the row's own keys of these names


@dataclass(frozen=True)
class ScoredRow:
    """A row and the [answers] rewards of its answers; None if it was dropped for its length."""

    candidates: Candidates
    rewards: np.ndarray | None


class ScoreFile:
    """A file of scored rows, to which whole batches are appended.

    Args:
        path: of the file.
        scorer_digest: of everything that rewards depend on beside the row; every line has it.
    """

    def __init__(self, path: str | Path, scorer_digest: str) -> None:
        self.path, self.scorer_digest = Path(path), scorer_digest
        self._rows = AppendedRows(path, "scored")

    def resume(self, source: ExampleSource, batch_size: int) -> list[ScoredRow]:
        """Read the rows that the file already has, in whole batches, and cut off the rest of it.

        Raises:
            UserError: the file is not the beginning of what this scorer would write for these rows; it is unchanged.
        """
        rows, ends = list[ScoredRow](), [0]
        for line in self._lines():
            if len(rows) == len(source):
                raise self._mismatch(len(rows), "the file has more lines than there are rows to score")
            row = self._parse(line, source[len(rows)], len(rows))
            if row is None:
                break
            rows.append(row)
            ends.append(ends[-1] + len(line))
        num_kept = len(rows) if len(rows) == len(source) else len(rows) // batch_size * batch_size
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(ends[num_kept])
        return rows[:num_kept]

    def __enter__(self) -> ScoreFile:
        """Open the file to append to it.

        Raises:
            UserError: it can't be written.
        """
        self._rows.open()
        self._rows.seek_end()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._rows.close()

    def write(self, rows: Iterable[ScoredRow]) -> None:
        """Append the lines of a batch, and hand them to the operating system at once.

        Raises:
            UserError: they can't be written, or the file is no longer at its path.
        """
        self._rows.write(b"".join(self._line(row) for row in rows))

    def _line(self, scored: ScoredRow) -> bytes:
        row, rewards = scored.candidates.row, scored.rewards
        added: dict[str, Any] = {"rewards": None if rewards is None else [_number(reward) for reward in rewards]}
        if rewards is not None and isinstance(row.get("completions"), list):
            ranking = np.argsort(-rewards, kind="stable").tolist()
            added |= {"best": row["completions"][ranking[0]], "ranking": ranking}
        prefix = _line_prefix(row)
        separator = b", " if len(prefix) > 1 else b""
        return prefix + separator + to_json_bytes({**added, "scorer": self.scorer_digest})[1:] + b"\n"

    def _lines(self) -> list[bytes] | IO[bytes]:
        try:
            return self.path.open("rb") if self.path.exists() else []
        except OSError as error:
            raise UserError(f"can't be read: {error.strerror or error}", where=Where(str(self.path))) from None

    def _parse(self, line: bytes, example: Example, index: int) -> ScoredRow | None:
        """Read a line; None if it is incomplete. Raises `UserError` if it is of another row or scorer."""
        assert isinstance(example, Candidates)
        prefix = _line_prefix(example.row)
        if line[: len(prefix)] != prefix[: len(line.rstrip(b"\n"))]:
            raise self._mismatch(index, "this line has another row than the data")
        if not line.endswith(b"\n"):
            return None
        values = json.loads(line)
        if values.get("scorer") != self.scorer_digest:
            raise self._mismatch(index, "this line was scored with another model, adapter, reference or setting")
        rewards = values["rewards"]
        return ScoredRow(example, None if rewards is None else np.array(rewards, np.float64))

    def _mismatch(self, index: int, message: str) -> UserError:
        hint = "Give another --output, or remove this file."
        return UserError(message, where=Where(str(self.path), index + 1), hint=hint)


def _line_prefix(row: dict[str, Any]) -> bytes:
    """The beginning of a row's line: its own keys."""
    return to_json_bytes({key: value for key, value in row.items() if key not in ADDED_KEYS})[:-1]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
