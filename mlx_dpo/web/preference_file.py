"""The verdicts of a person, as rows that `train` reads.

Preferences are in the file itself. Labels of single answers, which losses for pairs can't use, are in a file beside it.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.atomic_write import atomic_write

FileStamp = tuple[int, int, int] | None  # inode, bytes, time of the last change in nanoseconds
_MAX_ATTEMPTS = 20


class _ChangedMeanwhile(Exception):
    """Another program has written to the file."""


class PreferenceFile:
    """A JSONL file that rows are appended to. A row is on the disk when `append_lines` returns.

    Several threads and several servers may use it; other programs may append to the file, and read it at any time.
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

    def append_lines(self, lines: Sequence[bytes]) -> None:
        """Append lines, and wait until they are on the disk.

        Args:
            lines: each with its end.

        Raises:
            UserError: they can't be written; then the file is as it was.
        """
        with self._lock:
            try:
                with self._locked() as descriptor:
                    self._append(descriptor, b"".join(lines))
            except OSError as error:
                raise self._write_error(error) from None

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """A descriptor of the file, locked: of several servers that write to it, one does so at a time."""
        descriptor = _open_locked(self.path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _append(self, descriptor: int, content: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = b"\n" + content  # of a program that was ended while it wrote
        try:
            if os.write(descriptor, content) != len(content):
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
        return self.rewrite(lambda lines: [line for line in lines if _row_id(line) != row_id])

    def rewrite(self, change: Callable[[list[bytes]], list[bytes]]) -> bool:
        """Replace the file by one with other lines, atomically.

        If another program writes to the file meanwhile, the change is made again to what it wrote.

        Args:
            change: returns the new lines, given the present ones; each ends as it does in the file. What it raises
                leaves the file as it is. It may be called more than once.

        Returns:
            Whether lines are other than they were.

        Raises:
            UserError: the file can't be written, or is written to all the time.
        """
        with self._lock:
            try:
                if not self.path.exists() and not change([]):
                    return False
                with self._locked():
                    for _ in range(_MAX_ATTEMPTS):
                        before = self.stamp()
                        lines = self._lines()
                        changed = change(list(lines))
                        if changed == lines:
                            return False
                        if self._replace(b"".join(changed), before):
                            return True
            except OSError as error:
                raise self._write_error(error) from None
        raise UserError("is written to by another program all the time", where=Where(str(self.path)))

    def _replace(self, content: bytes, before: FileStamp) -> bool:
        with ExitStack() as locks, suppress(_ChangedMeanwhile):
            with atomic_write(self.path) as partial:
                partial.write_bytes(content)
                # the new file, too: another server may write to it only after the name of `partial` is free
                locks.callback(os.close, _open_locked(partial))
                if self.path.exists():
                    shutil.copymode(self.path, partial)
                if self.stamp() != before:
                    raise _ChangedMeanwhile
            return True
        return False

    def stamp(self) -> FileStamp:
        """What differs once the file has changed; None where there is no file."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def lines(self) -> tuple[FileStamp, list[bytes]]:
        """The lines with their ends, and the stamp of the file that they are of. Raises `UserError`."""
        with self._lock:
            try:
                stamp = self.stamp()  # before: a file that changes now is read again
                return stamp, self._lines()
            except OSError as error:
                raise self._read_error(error) from None

    def _lines(self) -> list[bytes]:
        """With their ends; only a line feed ends one, as for all that reads rows."""
        return io.BytesIO(self.path.read_bytes()).readlines() if self.path.exists() else []

    def _read_error(self, error: OSError) -> UserError:
        return UserError(f"can't be read: {error.strerror or error}", where=Where(str(self.path)))

    def _write_error(self, error: OSError) -> UserError:
        hint = (
            "Nothing was written: free some space, and give the verdict again." if error.errno == errno.ENOSPC else None
        )
        return UserError(f"can't be written: {error.strerror or error}", where=Where(str(self.path)), hint=hint)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # another server has replaced the file


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None if it has none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _row_id(line: bytes) -> str | None:
    row = parse_row(line)
    return None if row is None else row.get("id")
