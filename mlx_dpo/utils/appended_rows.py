"""A JSONL file that a command writes a few rows at a time, and resumes after an interruption."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mlx_dpo.errors import UserError, Where


class AppendedRows:
    """A file of rows, each handed to the operating system at once. What goes wrong is a `UserError` that names it.

    Args:
        path: of the file.
        verb: what the command has done to its rows, as in "the file was replaced while rows were scored".
    """

    def __init__(self, path: str | Path, verb: str) -> None:
        self.path, self.verb = Path(path), verb
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        """Open the file at its beginning; create it and its folder if they are missing.

        Raises:
            UserError: it can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: what can't be written is reported at once, and once
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise self.write_error(error) from None

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    @property
    def _opened(self) -> IO[bytes]:
        assert self._file is not None
        return self._file

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes from where the file is at; by default all."""
        try:
            return self._opened.read(size)
        except OSError as error:
            raise self.write_error(error) from None

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, and go to its end."""
        self._opened.truncate(size)
        self.seek_end()

    def seek_end(self) -> None:
        """Go to the end of the file."""
        self._opened.seek(0, os.SEEK_END)

    def write(self, content: bytes) -> None:
        """Write whole lines where the file is at.

        Raises:
            UserError: they can't be written, or the file is no longer at its path.
        """
        try:
            while content:
                content = content[self._opened.write(content) :]
            is_there = os.path.samestat(self.path.stat(), os.fstat(self._opened.fileno()))
        except OSError as error:
            raise self.write_error(error) from None
        if not is_there:
            raise UserError(f"the file was replaced while rows were {self.verb}", where=Where(str(self.path)))

    def write_error(self, error: OSError) -> UserError:
        """What to raise when the file, or one beside it, can't be written."""
        is_kept = self._file is not None and self.path.exists()
        hint = f"What was {self.verb} before is kept: the same command resumes after it." if is_kept else None
        return UserError(f"can't be written: {error.strerror or error}", where=Where(str(self.path)), hint=hint)


def to_json_bytes(value: Mapping[str, Any]) -> bytes:
    """A row as JSON in UTF-8, escaped where a text holds half of a surrogate pair."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
