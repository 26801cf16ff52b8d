"""The JSONL file that `label` writes, and resumes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.appended_rows import AppendedRows, to_json_bytes
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
        self._rows = AppendedRows(path, "labelled")

    def __enter__(self) -> LabelOutput:
        """Open the file, new or to resume it.

        Raises:
            UserError: it exists and is of other settings, or can't be written.
        """
        if self.path.exists():
            self._check_record()
        else:
            self._write_record(None)
        self._rows.open()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._rows.close()

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows that the file does not have yet, and hand them to the operating system at once.

        Raises:
            UserError: the file has other rows, or they can't be written.
        """
        content = b"".join(to_json_bytes(row) + b"\n" for row in rows)
        existing = self._rows.read(len(content))
        if existing != content[: len(existing)]:
            message = "the file has other rows than these settings give, though they were the same"
            raise UserError(message, where=Where(str(self.path)), hint=HINT)
        self._rows.write(content[len(existing) :])
        self.num_rows += len(rows)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record that all rows are written.

        Args:
            summary: of the rows; the same however often the command was interrupted.

        Raises:
            UserError: the file has more rows, or the record can't be written.
        """
        if self._rows.read(1):
            raise UserError("the file has more rows than these settings give", where=Where(str(self.path)), hint=HINT)
        self._write_record(summary)

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
        try:
            self.record_path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.record_path) as partial:
                partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise self._rows.write_error(error) from None


def finished_summary(path: str | Path) -> dict[str, Any] | None:
    """The summary of a file that `label` has finished; None if it has not."""
    record = Path(path).with_name(Path(path).name + RECORD_SUFFIX)
    summary = read_json(record).get("summary") if record.exists() and Path(path).exists() else None
    return summary if isinstance(summary, dict) else None
