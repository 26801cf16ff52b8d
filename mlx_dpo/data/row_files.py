"""Any way rows are written down, made one: numbered lines of bytes, each one JSON value.

JSON lines come as they are; a JSON array is cut into its elements; gzip is unpacked. The whole is never in memory.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.data.hub_datasets import open_hub_dataset, parse_hub_name
from mlx_dpo.data.parquet_table import ParquetLines
from mlx_dpo.errors import RowError, UserError, Where

_BUFFER_BYTES = 1 << 20
_WHITESPACE = " \t\r\n"
_UNSUPPORTED = {
    **dict.fromkeys((".arrow", ".csv", ".tsv", ".xlsx"), "tables are not read"),
    **dict.fromkeys((".zip", ".tar", ".zst", ".bz2", ".xz", ".7z"), "of packed files only .gz is read"),
}
_SUPPORTED = (
    "Taken are .jsonl, .json (an array of rows), both also as .gz, .parquet, folders with train.jsonl, data sets of "
    "the Hub (user/name), and - for stdin."
)


@dataclass
class RowStream:
    """An opened file of rows.

    Attributes:
        name: what complaints call it.
        stream: its bytes, unpacked, to be read once.
        seekable: whether `stream` is JSON lines on disk as they are, so that a line can be read again by its offset.
        share: how much of it has been read, 0 to 1; 0 where its size is unknown.
    """

    name: str
    stream: Any
    seekable: bool
    fraction_read: Callable[[], float]


def os_error_to_user_error(error: OSError, name: str) -> UserError:
    """An operating system's complaint about a file, as the user's."""
    if isinstance(error, FileNotFoundError):
        return UserError("no such file", where=Where(name), hint=_SUPPORTED)
    if isinstance(error, PermissionError):
        return UserError("may not be read: permission denied", where=Where(name))
    return UserError(f"can't be read: {error.strerror or error}", where=Where(name))


@contextmanager
def open_rows(path: str, name: str | None = None) -> Iterator[RowStream]:
    """Open a file of rows, a data set of the Hub, or stdin for `-`, called `name` in complaints.

    Raises `UserError`, also for what goes wrong with it inside.
    """
    if repo := parse_hub_name(path):
        with open_hub_dataset(path, repo) as source:
            yield source
        return
    name = name or ("stdin" if path == "-" else path)
    if path.endswith(".parquet") and expand_path(path).is_file():
        table = ParquetLines(path, name)
        yield RowStream(name, table, False, table.fraction_read)
        return
    opened: list[io.BufferedReader] = []
    try:
        raw = _stdin() if path == "-" else _open_file(path)
        if path != "-":
            opened.append(raw)
        size = file_size(raw)
        packed = _is_gzip(raw, name)
        stream: Any = io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER_BYTES) if packed else raw
        seekable = bool(size) and path != "-" and not packed and not _starts_array(stream)
        yield RowStream(name, stream, seekable, lambda: min(raw.tell() / size, 1.0) if size else 0.0)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        short = isinstance(error, EOFError)
        what = "is cut short" if short else f"is damaged ({error})"
        raise UserError(f"the gzip file {what}", where=Where(name), hint="Was it copied completely?") from None
    except OSError as error:
        raise os_error_to_user_error(error, name) from None
    finally:
        for file in opened:
            with suppress(OSError):
                file.close()


def file_size(stream: Any) -> int:
    """Bytes in a regular file; 0 for a pipe or a stream that is in memory."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # io.UnsupportedOperation, where a test or a notebook stands in for stdin
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _stdin() -> Any:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise UserError("there is nothing on stdin", where=Where("stdin"))
    return stream if hasattr(stream, "peek") else io.BufferedReader(stream)


def expand_path(name: str) -> Path:
    """A path as typed, with ~ for the home folder."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~nobody
        return Path(name)


def _open_file(path: str) -> Any:
    file = expand_path(path)
    if file.is_dir():
        raise UserError("is a folder, not a file of rows", where=Where(path), hint=_SUPPORTED)
    if why := _UNSUPPORTED.get(file.suffix.lower()):
        raise UserError(why, where=Where(path), hint=_SUPPORTED)
    try:
        return file.open("rb", buffering=_BUFFER_BYTES)
    except ValueError as error:  # a NUL in the name
        raise UserError(f"can't be opened: {error}", where=Where(path)) from None


def _is_gzip(raw: io.BufferedReader, name: str) -> bool:
    start = raw.peek(2)[:2]
    if start == b"\x1f\x8b":
        return True
    if name.endswith(".gz") and start:
        raise UserError("its name ends in .gz, but it is not a gzip file", where=Where(name))
    return False


def _starts_array(stream: Any) -> bool:
    return stream.peek(_BUFFER_BYTES)[:_BUFFER_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def iter_lines(source: RowStream) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, offset in the stream, JSON) of every row. Raises `RowError` where an array breaks off."""
    if not source.seekable and _starts_array(source.stream):
        yield from ((line, 0, element) for line, element in _array_elements(source))
        return
    offset = 0
    for number, line in enumerate(source.stream, 1):
        start, offset = offset, offset + len(line)
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            line, start = line.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
        if not line.isspace():
            yield number, start, line


def parse_json_line(line: bytes, where: Where) -> Any:
    """The JSON value of a line. Raises `RowError`."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(error, where) from None
    except json.JSONDecodeError as error:
        raise _bad_json(error.msg, where, error.pos + 1) from None
    except RecursionError:
        raise RowError("not valid JSON: nested too deep", kind="bad JSON", where=where) from None
    except ValueError as error:  # a number of thousands of digits
        raise _bad_json(str(error).split(";")[0], where) from None


def _bad_json(message: str, where: Where, column: int | None = None) -> RowError:
    place = f" (column {column})" if column else ""
    hint = "Each line must be one JSON object, or the whole file one JSON array of them."
    return RowError(f"not valid JSON: {message}{place}", kind="bad JSON", where=where, hint=hint)


def _not_utf8(error: UnicodeDecodeError, where: Where) -> RowError:
    byte = error.object[error.start]
    message = f"not UTF-8 text: byte 0x{byte:02x} at position {error.start + 1}"
    return RowError(message, kind="not UTF-8", where=where, hint="Save the file as UTF-8.")


class _TextReader:
    """The text of a stream from the current position on, read as needed; knows the line it is on."""

    def __init__(self, stream: Any, name: str) -> None:
        self.stream, self.name = stream, name
        self.line, self.text, self.at, self.ended = 1, "", 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def read_more(self) -> None:
        """Drop what is behind the position, and read at least as much as is left."""
        self.text, self.at = self.text[self.at :], 0
        data = self.stream.read(max(_BUFFER_BYTES, len(self.text)))
        self.ended = not data
        try:
            self.text += self._decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n") + error.object[: error.start].count(b"\n")
            raise _not_utf8(error, Where(self.name, line)) from None

    def advance(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def peek(self) -> str:
        """The next character that is not white space, or nothing at the end."""
        while True:
            to = self.at
            while to < len(self.text) and self.text[to] in _WHITESPACE:
                to += 1
            self.advance(to)
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.read_more()

    def column(self, position: int) -> tuple[int, int]:
        """(line, column) of a position in `text`; the column counts from the last line break that is still there."""
        line = self.line + self.text.count("\n", self.at, position)
        return line, position - self.text.rfind("\n", 0, position)


def _array_elements(source: RowStream) -> Iterator[tuple[int, bytes]]:
    """(line it starts on, JSON on one line) of every element of a JSON array."""
    text = _TextReader(source.stream, source.name)
    text.peek()
    text.advance(text.at + 1)
    if text.peek() == "]":
        return
    while True:
        text.peek()
        line = text.line
        element = _read_element(text)
        # between a value's tokens a line break is as good as a space, and in a string it can't be
        yield line, element.replace("\n", " ").replace("\r", " ").encode("utf-8", "surrogatepass")
        delimiter = text.peek()
        if delimiter not in (",", "]"):
            found = "the file ends inside the array" if not delimiter else "expecting ',' or ']' between rows"
            line, column = text.column(text.at)
            raise _bad_json(found, Where(source.name, line), column)
        text.advance(text.at + 1)
        if delimiter == "]":
            if text.peek():
                raise _bad_json("there is more after the array's end", Where(source.name, text.line))
            return


def _read_element(text: _TextReader) -> str:
    """The text of the value at the position, which moves behind it."""
    decode = json.JSONDecoder().raw_decode
    while True:
        try:
            _, end = decode(text.text, text.at)
            found = text.text[text.at : end]
            text.advance(end)
            return found
        except json.JSONDecodeError as error:
            cut_off = error.msg.startswith("Unterminated string") or error.pos > len(text.text) - 16
            if text.ended or not cut_off:
                line, column = text.column(error.pos)
                raise _bad_json(error.msg, Where(text.name, line), column) from None
        except (RecursionError, ValueError) as error:
            message = "nested too deep" if isinstance(error, RecursionError) else str(error).split(";")[0]
            raise _bad_json(message, Where(text.name, text.line)) from None
        text.read_more()
