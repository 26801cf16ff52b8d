"""The JSONL file that `sample` writes a group of prompts at a time, and resumes after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mlx_dpo.errors import UserError, Where
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
        self._file: IO[bytes] | None = None

    def __enter__(self) -> SampleFile:
        """Open the file, new or to resume it.

        Raises:
            UserError: it exists and was written with other settings, or can't be written; it is unchanged.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() or self.record_path.exists():
                self._check_record()
            else:
                with atomic_write(self.record_path) as partial:
                    partial.write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise self._write_error(error) from None
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        assert self._file is not None
        self._file.close()

    def resume(self, num_rows: int) -> list[dict[str, Any]]:
        """Read the rows of whole groups that the file has, and cut off the rest of it.

        Args:
            num_rows: rows of the finished file; its last group may be smaller.

        Raises:
            UserError: the file has more rows, or a line that `sample` has not written.
        """
        assert self._file is not None
        *lines, _ = self._file.read().split(b"\n")  # what follows the last end of a line is incomplete
        if len(lines) > num_rows:
            raise self._foreign_error(f"the file has {len(lines)} lines, and there are {num_rows} prompts")
        whole = len(lines) if len(lines) == num_rows else len(lines) // self.group_size * self.group_size
        rows = [self._parse(line, number) for number, line in enumerate(lines[:whole], 1)]
        self._file.truncate(sum(len(line) + 1 for line in lines[:whole]))
        self._file.seek(0, os.SEEK_END)
        return rows

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a group, and hand it to the operating system at once.

        Raises:
            UserError: it can't be written, or the file is no longer at its path.
        """
        assert self._file is not None
        content = b"".join(_to_line(row) for row in rows)
        try:
            while content:
                content = content[self._file.write(content) :]
            is_there = os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError as error:
            raise self._write_error(error) from None
        if not is_there:
            raise UserError("the file was replaced while rows were sampled", where=Where(str(self.path)))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if len(row["completions"]) == len(row["token_counts"]) == len(row["finish_reasons"]):
                return dict(row)
        except (ValueError, TypeError, KeyError):
            pass
        raise self._foreign_error("this line is not one of `mlx-dpo sample`", number)

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

    def _write_error(self, error: OSError) -> UserError:
        hint = "What was sampled before is kept: the same command resumes after it." if self._file else None
        return UserError(f"can't be written: {error.strerror or error}", where=Where(str(self.path)), hint=hint)


def _to_line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(row).encode() + b"\n"
