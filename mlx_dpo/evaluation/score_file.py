"""The file that `score` writes, a line a row, and how it goes on where it was left."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from mlx_dpo.data.encoded_examples import ExampleSource
from mlx_dpo.data.examples import Candidates, Example
from mlx_dpo.errors import UserError, Where

ADDED_KEYS = ("rewards", "best", "ranking", "scorer")  # keys of a line; a row's own of these names give way


@dataclass(frozen=True)
class ScoredRow:
    """A row and the rewards of its answers, [answers]; None where it was dropped for its length."""

    candidates: Candidates
    rewards: np.ndarray | None


class ScoreFile:
    """Lines are the row's own keys, then ours. They are only ever added, and handed to the system a batch at a time."""

    def __init__(self, path: str | Path, scorer_digest: str) -> None:
        """scorer: a digest of all that rewards follow from beside the row; it stands in every line."""
        self.path, self.scorer_digest = Path(path), scorer_digest
        self._file: IO[bytes] | None = None

    def resume(self, source: ExampleSource, batch_size: int) -> list[ScoredRow]:
        """What the file holds already of the source's rows, in whole batches; the rest of it is cut off.

        Raises `UserError`, with the file as it was, where it is not the beginning of what this scorer would write.
        """
        rows, ends = list[ScoredRow](), [0]
        for line in self._lines():
            if len(rows) == len(source):
                raise self._other(len(rows), "there are more lines in it than rows to score")
            row = self._read(line, source[len(rows)], len(rows))
            if row is None:  # the last one, cut short
                break
            rows.append(row)
            ends.append(ends[-1] + len(line))
        kept = len(rows) if len(rows) == len(source) else len(rows) // batch_size * batch_size
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(ends[kept])
        return rows[:kept]

    def __enter__(self) -> ScoreFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
        except OSError as error:
            raise UserError(f"can't be written: {error.strerror or error}", where=Where(str(self.path))) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()

    def write(self, rows: Iterable[ScoredRow]) -> None:
        """Add the lines of a batch."""
        assert self._file is not None
        self._file.write(b"".join(self._line(row) for row in rows))
        self._file.flush()

    def _line(self, one: ScoredRow) -> bytes:
        row, rewards = one.candidates.row, one.rewards
        told: dict[str, Any] = {"rewards": None if rewards is None else [_number(reward) for reward in rewards]}
        if rewards is not None and isinstance(row.get("completions"), list):
            ranking = np.argsort(-rewards, kind="stable").tolist()
            told |= {"best": row["completions"][ranking[0]], "ranking": ranking}
        own = _own(row)
        return own + (b", " if len(own) > 1 else b"") + _json({**told, "scorer": self.scorer_digest})[1:] + b"\n"

    def _lines(self) -> list[bytes] | IO[bytes]:
        try:
            return self.path.open("rb") if self.path.exists() else []
        except OSError as error:
            raise UserError(f"can't be read: {error.strerror or error}", where=Where(str(self.path))) from None

    def _read(self, line: bytes, example: Example, index: int) -> ScoredRow | None:
        """A line read back; None where it was cut short. Raises `UserError` where it is not of this row and scorer."""
        assert isinstance(example, Candidates)
        own = _own(example.row)
        if line[: len(own)] != own[: len(line.rstrip(b"\n"))]:
            raise self._other(index, "this line is of another row than the data has here")
        if not line.endswith(b"\n"):
            return None
        said = json.loads(line)
        if said.get("scorer") != self.scorer_digest:
            raise self._other(index, "another model, adapter, reference or setting has scored this line")
        rewards = said["rewards"]
        return ScoredRow(example, None if rewards is None else np.array(rewards, np.float64))

    def _other(self, index: int, message: str) -> UserError:
        hint = "Give another --output, or remove this file."
        return UserError(message, where=Where(str(self.path), index + 1), hint=hint)


def _own(row: dict[str, Any]) -> bytes:
    """A row's own keys as a line begins with them."""
    return _json({key: value for key, value in row.items() if key not in ADDED_KEYS})[:-1]


def _json(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, in a column that nobody reads
        return json.dumps(value).encode()


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
