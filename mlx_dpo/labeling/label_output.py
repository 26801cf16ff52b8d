"""The JSONL file that `label` writes, and resumes after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.atomic_write import atomic_write
from mlx_dpo.utils.json_files import finite_values, read_json

RECORD_SUFFIX = ".label.json"
HINT = "Give another --output, or remove this file."


class LabelOutput:
    """A file of rows, which are written in the order of the input's, with a record of the settings beside it.

    A command that resumes writes all rows again, and they must be those that the file has; what is missing is appended.
    So the file is the same at the end, wherever a process was ended.

    Args:
        path: of the file. The record is beside it, with `.label.json` after its name: settings, and the summary once
            all rows are written.
        settings: all that the rows depend on.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = Path(path), dict(settings)
        self.record_path = self.path.with_name(self.path.name + RECORD_SUFFIX)
        self.num_rows = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> LabelOutput:
        """Open the file, new or to resume it.

        Raises:
            UserError: it exists and is of other settings, or can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._check_record()
            else:
                self._write_record(None)
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise self._write_error(error) from None
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows that the file does not have yet, and hand them to the operating system at once.

        Raises:
            UserError: the file has other rows, or they can't be written.
        """
        assert self._file is not None
        content = b"".join(_to_line(row) for row in rows)
        try:
            existing = self._file.read(len(content))
            if existing != content[: len(existing)]:
                message = "the file has other rows than these settings give, though they were the same"
                raise UserError(message, where=Where(str(self.path)), hint=HINT)
            content = content[len(existing) :]
            while content:
                content = content[self._file.write(content) :]
            is_there = os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError as error:
            raise self._write_error(error) from None
        if not is_there:
            raise UserError("the file was replaced while rows were written", where=Where(str(self.path)))
        self.num_rows += len(rows)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record that all rows are written.

        Args:
            summary: of the rows; the same however often the command was interrupted.

        Raises:
            UserError: the file has more rows, or the record can't be written.
        """
        assert self._file is not None
        if self._file.read(1):
            raise UserError("the file has more rows than these settings give", where=Where(str(self.path)), hint=HINT)
        try:
            self._write_record(summary)
        except OSError as error:
            raise self._write_error(error) from None

    def _check_record(self) -> None:
        if not self.record_path.exists():
            message = "it exists already, and `mlx-dpo label` has not written it"
            raise UserError(message, where=Where(str(self.path)), hint=HINT)
        recorded = read_json(self.record_path).get("settings")
        recorded = recorded if isinstance(recorded, dict) else {}
        settings = json.loads(json.dumps(self.settings))
        different = [name for name in settings if settings[name] != recorded.get(name)]
        if different:
            message = "it was written with another " + " and another ".join(f"`{name}`" for name in different)
            raise UserError(message, where=Where(str(self.path)), hint=f"{HINT} The record is {self.record_path}.")

    def _write_record(self, summary: Mapping[str, Any] | None) -> None:
        record = finite_values({"settings": self.settings, "summary": summary})
        with atomic_write(self.record_path) as partial:
            partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _write_error(self, error: OSError) -> UserError:
        return UserError(f"can't be written: {error.strerror or error}", where=Where(str(self.path)))


def finished_summary(path: str | Path) -> dict[str, Any] | None:
    """The summary of a file that `label` has finished; None if it has not."""
    record = Path(path).with_name(Path(path).name + RECORD_SUFFIX)
    summary = read_json(record).get("summary") if record.exists() and Path(path).exists() else None
    return summary if isinstance(summary, dict) else None


def _to_line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(row).encode() + b"\n"
