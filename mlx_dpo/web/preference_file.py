"""The verdicts of a person, as rows that `train` reads.

Preferences are in the file itself. Labels of single answers, which losses for pairs can't use, are in a file beside it.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.appended_rows import to_json_bytes
from mlx_dpo.utils.atomic_write import atomic_write


class PreferenceFile:
    """A JSONL file that rows are appended to. A row is on the disk when `append` returns.

    Several threads may use it; other programs may append to the file, and read it at any time.
    """

    def __init__(self, path: Path) -> None:
        """Name the file, which is made with its first row.

        Args:
            path: the file.

        Raises:
            UserError: its folder can't be made, or it is not a file.
        """
        self.path, self._lock = path, threading.Lock()
        if path.is_dir():
            raise UserError("is a folder: name a file", where=Where(str(path)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._write_error(error) from None

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, and wait until it is on the disk.

        Raises:
            UserError: it can't be written; then the file is as it was.
        """
        line = to_json_bytes(row) + b"\n"
        with self._lock:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    self._append_line(descriptor, line)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise self._write_error(error) from None

    def _append_line(self, descriptor: int, line: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # of a program that was ended while it wrote
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def remove(self, row_id: str) -> bool:
        """Remove the row with an id; all others stay as they are, byte for byte.

        Returns:
            Whether there was such a row.

        Raises:
            UserError: the file can't be written.
        """
        with self._lock:
            try:
                lines = self._lines()
                kept = [line for line in lines if _row_id(line) != row_id]
                if len(kept) < len(lines):
                    with atomic_write(self.path) as partial:
                        partial.write_bytes(b"".join(kept))
            except OSError as error:
                raise self._write_error(error) from None
        return len(kept) < len(lines)

    def rows(self) -> list[dict[str, Any]]:
        """The rows that can be read, in order.

        Raises:
            UserError: the file can't be read.
        """
        with self._lock:
            try:
                lines = self._lines()
            except OSError as error:
                raise UserError(f"can't be read: {error.strerror or error}", where=Where(str(self.path))) from None
        return [row for line in lines if (row := _parse(line)) is not None]

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []

    def _write_error(self, error: OSError) -> UserError:
        hint = (
            "Nothing was written: free some space, and give the verdict again." if error.errno == errno.ENOSPC else None
        )
        return UserError(f"can't be written: {error.strerror or error}", where=Where(str(self.path)), hint=hint)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _row_id(line: bytes) -> str | None:
    row = _parse(line)
    return None if row is None else row.get("id")
