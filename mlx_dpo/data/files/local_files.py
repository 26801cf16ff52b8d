"""Local files of rows, and stdin: JSON lines, a JSON array, CSV or TSV, all also as .gz, or parquet.

Read as a stream.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.data.files.file_kinds import check_is_text_of_rows, is_indented, is_parquet, wrapper_end
from mlx_dpo.data.files.json_array import BUFFER_BYTES, array_elements, json_values, starts_array
from mlx_dpo.data.files.json_lines import numbered_lines
from mlx_dpo.data.files.parquet_lines import ParquetLines
from mlx_dpo.data.files.table_lines import TableLines, is_table_name
from mlx_dpo.discovery.near_names import similar_path
from mlx_dpo.errors import UserError, Where

_UNSUPPORTED = {
    **dict.fromkeys((".arrow", ".xlsx"), "of tables, .csv, .tsv and .parquet are read"),
    **dict.fromkeys((".zip", ".tar", ".zst", ".bz2", ".xz", ".7z"), "of compressed files only .gz is read"),
}
_SUPPORTED = (
    "Supported are .jsonl, .json (an array of rows), .csv and .tsv, all also as .gz, .parquet, folders with "
    "train.jsonl, datasets on the Hub (user/name), and - for stdin."
)


@dataclass
class RowStream:
    """The rows of an open file.

    Attributes:
        name: what errors call it.
        lines: (line number from 1, byte offset, JSON) of every row, to be read once. Raises `RowError` if an array
            breaks off.
        seekable: whether it is a file of plain JSON lines, whose lines can be read again by their offsets.
        fraction_read: how much is read, 0 to 1; 0 if the size is unknown.
    """

    name: str
    lines: Iterator[tuple[int, int, bytes]]
    seekable: bool
    fraction_read: Callable[[], float]


@contextmanager
def open_local_rows(path: str, name: str | None = None) -> Iterator[RowStream]:
    """Open a file of rows, or stdin for `-`.

    Args:
        path: the file.
        name: what errors call it, if not by its path.

    Raises:
        UserError: it can't be read; also raised inside the context for errors while reading.
    """
    name = name or ("stdin" if path == "-" else path)
    if _is_parquet_file(path):
        table = ParquetLines(expand_path(path), name)
        yield RowStream(name, numbered_lines(table), False, lambda: table.fraction_read)
        return
    with ExitStack() as stack:
        try:
            raw = _stdin() if path == "-" else _open_file(path, name)
            if path != "-":
                stack.callback(raw.close)
            size, is_gzip = _file_size(raw), _is_gzip(raw, name)
            stream: Any = io.BufferedReader(gzip.GzipFile(fileobj=raw), BUFFER_BYTES) if is_gzip else raw
            lines, is_json_lines = _row_lines(stream, name)
            seekable = bool(size) and path != "-" and not is_gzip and is_json_lines
            yield RowStream(name, lines, seekable, lambda: min(raw.tell() / size, 1.0) if size else 0.0)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            reason = "is cut short" if isinstance(error, EOFError) else f"is damaged ({error})"
            raise UserError(f"the gzip file {reason}", where=Where(name), hint="Was it copied completely?") from None
        except OSError as error:
            raise os_error_to_user_error(error, name) from None


def _is_parquet_file(path: str) -> bool:
    """Whether it is one, by its name or, under another name, by its first bytes."""
    try:
        file = expand_path(path)
        if path == "-" or not file.is_file():
            return False
        if path.endswith(".parquet"):
            return True
        with file.open("rb") as stream:
            return is_parquet(stream.read(4))
    except (OSError, ValueError):  # opening it will fail with the reason
        return False


def _row_lines(stream: Any, name: str) -> tuple[Iterator[tuple[int, int, bytes]], bool]:
    """The rows of a stream as lines, and whether these are the stream's own lines. Raises `UserError`."""
    start = stream.peek(BUFFER_BYTES)[:BUFFER_BYTES]
    is_table = is_table_name(name)
    check_is_text_of_rows(start, name, is_table=is_table)
    if is_table:
        return TableLines(stream, name), False
    if starts_array(start):
        return array_elements(stream, name), False
    if skip := wrapper_end(start):
        return array_elements(stream, name, skip), False
    if is_indented(start):
        return json_values(stream, name), False
    return numbered_lines(stream), True


def os_error_to_user_error(error: OSError, name: str) -> UserError:
    """The message for a file that can't be read."""
    if isinstance(error, FileNotFoundError):
        return UserError("no such file", where=Where(name), hint=similar_path(name) or _SUPPORTED)
    if isinstance(error, PermissionError):
        return UserError("may not be read: permission denied", where=Where(name))
    return UserError(f"can't be read: {error.strerror or error}", where=Where(name))


def expand_path(name: str) -> Path:
    """A path as typed, with ~ for the home folder."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~nobody
        return Path(name)


def _file_size(stream: Any) -> int:
    """The bytes of a regular file; 0 for a pipe or a stream in memory."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # io.UnsupportedOperation, if a test or a notebook replaces stdin
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _stdin() -> Any:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise UserError("there is nothing on stdin", where=Where("stdin"))
    return stream if hasattr(stream, "peek") else io.BufferedReader(stream)


def _open_file(path: str, name: str) -> Any:
    file = expand_path(path)
    if file.is_dir():
        raise UserError("is a folder, not a file of rows", where=Where(name), hint=_SUPPORTED)
    if reason := _UNSUPPORTED.get(file.suffix.lower()):
        raise UserError(reason, where=Where(name), hint=_SUPPORTED)
    try:
        return file.open("rb", buffering=BUFFER_BYTES)
    except ValueError as error:  # a NUL in the name
        raise UserError(f"can't be opened: {error}", where=Where(name)) from None


def _is_gzip(raw: io.BufferedReader, name: str) -> bool:
    start = raw.peek(2)[:2]
    if start == b"\x1f\x8b":
        return True
    if name.endswith(".gz") and start:
        raise UserError("its name ends in .gz, but it is not a gzip file", where=Where(name))
    return False
