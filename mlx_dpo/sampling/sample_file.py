"""The JSONL file that `sample` writes a group of prompts at a time, and resumes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.appended_rows import AppendedRows, to_json_bytes
from mlx_dpo.utils.atomic_write import atomic_write
from mlx_dpo.utils.json_files import read_json

RECORD_SUFFIX = ".sample.json"


class SampleFile:
    """A file of sampled rows, to which whole groups are appended, with a record of the settings beside it.

    Args:
        path: of the file. The record has `.sample.json` after its name.
        settings: all that the rows depend on, as JSON values.
        group_size: rows of a group.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], group_size: int) -> None:
        self.path, self.settings, self.group_size = Path(path), json.loads(json.dumps(settings)), group_size
        self.record_path = self.path.with_name(self.path.name + RECORD_SUFFIX)
        self._rows = AppendedRows(path, "sampled")

    def __enter__(self) -> SampleFile:
        """Open the file, new or to resume it.

        Raises:
            UserError: it exists and was written with other settings, or can't be written; it is unchanged.
        """
        if self.path.exists() or self.record_path.exists():
            self._check_record()
        else:
            self._write_record()
        self._rows.open()
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._rows.close()

    def resume(self, num_rows: int) -> list[dict[str, Any]]:
        """Read the rows of whole groups that the file has, and cut off the rest of it.

        Args:
            num_rows: rows of the finished file; its last group may be smaller.

        Raises:
            UserError: the file has more rows, or a line that `sample` has not written.
        """
        *lines, _ = self._rows.read().split(b"\n")  # what follows the last end of a line is incomplete
        if len(lines) > num_rows:
            raise self._foreign_error(f"the file has {len(lines)} lines, and there are {num_rows} prompts")
        whole = len(lines) if len(lines) == num_rows else len(lines) // self.group_size * self.group_size
        rows = [self._parse(line, number) for number, line in enumerate(lines[:whole], 1)]
        self._rows.truncate(sum(len(line) + 1 for line in lines[:whole]))
        return rows

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a group, and hand it to the operating system at once.

        Raises:
            UserError: it can't be written, or the file is no longer at its path.
        """
        self._rows.write(b"".join(to_json_bytes(row) + b"\n" for row in rows))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if len(row["completions"]) == len(row["token_counts"]) == len(row["finish_reasons"]):
                return dict(row)
        except (ValueError, TypeError, KeyError):
            pass
        raise self._foreign_error("this line is not one of `mlx-dpo sample`", number)

    def _write_record(self) -> None:
        try:
            self.record_path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.record_path) as partial:
                partial.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise self._rows.write_error(error) from None

    def _check_record(self) -> None:
        if not self.record_path.exists():
            raise self._foreign_error("the file exists already, and `mlx-dpo sample` has not written it")
        recorded = read_json(self.record_path)
        different = [name for name in self.settings if self.settings[name] != recorded.get(name)]
        if different:
            raise self._foreign_error(f"the file was written with another {' and another '.join(different)}")

    def _foreign_error(self, message: str, line: int | None = None) -> UserError:
        hint = "Give another --output, or remove this file"
        hint += f" and {self.record_path.name} beside it." if self.record_path.exists() else "."
        return UserError(message, where=Where(str(self.path), line), hint=hint)
