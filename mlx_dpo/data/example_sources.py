"""Files of examples: every row looked at once, then any example read again from disk when it is asked for."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mlx_dpo.data.hub_datasets import HubDataset, parse_hub_name
from mlx_dpo.data.row_files import (
    RowStream,
    expand_path,
    iter_lines,
    open_rows,
    os_error_to_user_error,
    parse_json_line,
)
from mlx_dpo.data.row_formats import Example, Pair, RowParser, parse_examples, parse_pairs
from mlx_dpo.errors import RowError, UserError, Where

OnBadRow = Callable[[RowError], None]
OnProgress = Callable[[float], None]

TRAIN_NAMES = ("train",)
VALID_NAMES = ("valid", "validation", "val", "eval", "dev")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_BLOCK_BYTES = 1 << 14


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row and the examples in it; `line` is its JSON, `offset` where that starts in a file of JSON lines."""

    where: Where
    value: Any
    examples: Sequence[Example]
    line: bytes
    offset: int


def read_rows(
    path: str,
    on_bad_row: OnBadRow | None = None,
    on_progress: OnProgress | None = None,
    parse: RowParser = parse_examples,
) -> Iterator[ParsedRow]:
    """The good rows of a file (or of stdin, for `-`), in order, as they are read.

    Args:
        on_problem: called for each bad row, which is then left out; without it the first bad row raises.
        progress: called now and then with the share of the file that is done, 0 to 1.
        read: gives the examples of a row; `pairs_of` refuses single completions.

    Raises: `RowError`; `UserError` where the file can't be read at all.
    """
    with open_rows(path) as source:
        yield from parse_rows(source, on_bad_row, on_progress, parse)


def parse_rows(
    source: RowStream,
    on_bad_row: OnBadRow | None = None,
    on_progress: OnProgress | None = None,
    parse: RowParser = parse_examples,
) -> Iterator[ParsedRow]:
    """The good rows of an open source; see `read_rows`."""
    lines, one_kind = iter_lines(source), ExampleKindCheck()
    shown = time.monotonic()
    for count in range(1 << 62):
        where = Where(source.name)
        try:
            number, offset, line = next(lines)
            where = Where(source.name, number)
            value = parse_json_line(line, where)
            examples = one_kind.check(parse(value, where), where)
        except StopIteration:
            break
        except RowError as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
            continue  # after an array's bad JSON nothing more comes
        yield ParsedRow(where, value, examples, line, offset)
        if on_progress and count % 256 == 0 and time.monotonic() - shown > 0.25:
            shown = time.monotonic()
            on_progress(source.fraction_read())
    if on_progress:
        on_progress(1.0)


class ExampleKindCheck:
    """Sees to it that examples are all pairs or all single completions."""

    def __init__(self) -> None:
        self.first: tuple[type[Example], Where] | None = None

    def check(self, examples: Sequence[Example], where: Where) -> Sequence[Example]:
        """The same examples. Raises `RowError`."""
        if examples:
            kind, place = self.first = self.first or (type(examples[0]), where)
            if not isinstance(examples[0], kind):
                names = ("a single completion", "a pair")
                this, other = names if kind is Pair else names[::-1]
                hint = "Put pairs into one file and single completions into another."
                message = f"is {this}, where line {place.line} holds {other}"
                raise RowError(message, kind="mixed", where=where, hint=hint)
        return examples


class ExampleFile:
    """The examples of a file by number; only where each of them starts is in memory (14 bytes a pair).

    Reading is safe from several threads at once.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        file: BinaryIO,
        parse: RowParser,
        offsets: np.ndarray,
        lines: np.ndarray,
        row_positions: np.ndarray,
    ) -> None:
        """digest: of all rows. The others: of each one its row's first byte in `file`, its line, its number in it."""
        self.name, self.digest, self._parse = name, digest, parse
        self._file, self._offsets, self._lines, self._row_positions = file, offsets, lines, row_positions
        self._file_state = _file_state(file)

    @classmethod
    def open(
        cls,
        path: str,
        on_bad_row: OnBadRow | None = None,
        on_progress: OnProgress | None = None,
        parse: RowParser = parse_pairs,
    ) -> ExampleFile:
        """Look at every row of a file (or of stdin, for `-`) once; see `read_rows` for the arguments and errors."""
        offsets, lines, within = array("q"), array("I"), array("H")
        digest = hashlib.blake2b(digest_size=16)
        with open_rows(path) as source:
            file: Any = expand_path(path).open("rb") if source.seekable else _temporary(source.name)
            before, end = _file_state(file), 0
            for row in parse_rows(source, on_bad_row, on_progress, parse):
                digest.update(row.line.rstrip() + b"\n")
                start = row.offset
                if not source.seekable:
                    start, end = end, end + _append(file, row.line, source.name)
                for i in range(len(row.examples)):
                    offsets.append(start)
                    lines.append(row.where.line or 0)
                    within.append(i)
        if not offsets:
            raise UserError("holds no pairs", where=Where(source.name), hint="`mlx-dpo data check` says why.")
        if source.seekable and before != _file_state(file):
            raise _changed_error(source.name)
        file.flush()
        index = (np.frombuffer(a, dtype) for a, dtype in ((offsets, np.int64), (lines, np.uint32), (within, np.uint16)))
        return cls(source.name, digest.hexdigest(), file, parse, *index)

    def index_arrays(self) -> dict[str, np.ndarray]:
        """All that another process needs to read the examples of the same file without looking at every row."""
        told = {"digest": bytes.fromhex(self.digest), "checksum": _checksum(self._file)}
        places = {"offsets": self._offsets, "lines": self._lines, "within": self._row_positions}
        return {**places, **{name: np.frombuffer(value, np.uint8) for name, value in told.items()}}

    @classmethod
    def from_index(cls, path: str, index: Mapping[str, np.ndarray], parse: RowParser) -> ExampleFile:
        """The file that another process has looked at, unpacked JSON lines here as there.

        Raises `UserError` where it is not the same to the byte.
        """
        with open_rows(path) as source:
            file: Any = expand_path(path).open("rb")
        if _checksum(file) != index["checksum"].tobytes():
            hint = "Copy the first machine's file to the others."
            raise UserError("is not the same file on all machines", where=Where(source.name), hint=hint)
        digest = index["digest"].tobytes().hex()
        return cls(source.name, digest, file, parse, index["offsets"], index["lines"], index["within"])

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        if _file_state(self._file) != self._file_state:
            raise _changed_error(self.name)
        where = self.location(index)
        try:
            row = parse_json_line(self._read_line(int(self._offsets[index])), where)
            return self._parse(row, where)[int(self._row_positions[index])]
        except (RowError, IndexError):
            raise _changed_error(self.name) from None

    def location(self, index: int) -> Where:
        """The place of a pair's row."""
        return Where(self.name, int(self._lines[index]))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _read_line(self, offset: int) -> bytes:
        line, size = b"", _BLOCK_BYTES
        while not line.endswith(b"\n"):
            block = os.pread(self._file.fileno(), size, offset + len(line))
            if not block:
                break
            line += block[: block.find(b"\n") + 1 or len(block)]
            size *= 2
        return line


def is_plain_jsonl(path: str) -> bool:
    """Whether a file is JSON lines on disk as they are, so that its rows can be read by their places."""
    with open_rows(path) as source:
        return source.seekable


def _checksum(file: BinaryIO) -> bytes:
    """Of all bytes of a file."""
    digest, at = hashlib.blake2b(digest_size=16), 0
    while block := os.pread(file.fileno(), 1 << 22, at):
        digest.update(block)
        at += len(block)
    return digest.digest()


def _file_state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _changed_error(name: str) -> UserError:
    hint = "Start again, and leave the file as it is while it is in use."
    return UserError("the file was changed after it had been opened", where=Where(name), hint=hint)


def _temporary(name: str) -> Any:
    try:
        return tempfile.TemporaryFile(buffering=1 << 20)
    except OSError as error:
        raise _no_space_error(error, name) from None


def _append(file: BinaryIO, line: bytes, name: str) -> int:
    line = line if line.endswith(b"\n") else line + b"\n"
    try:
        return file.write(line)
    except OSError as error:
        raise _no_space_error(error, name) from None


def _no_space_error(error: OSError, name: str) -> UserError:
    hint = "Set TMPDIR to a folder with room for it, or give an unpacked .jsonl file, which needs no copy."
    return UserError(f"can't be unpacked into {tempfile.gettempdir()}: {error.strerror}", where=Where(name), hint=hint)


def find_data_files(data: str, valid_data: str | None) -> tuple[str, str | None]:
    """The file to train on and the held-out one, from what --data and --valid-data say. Raises `UserError`.

    In a folder these are train.jsonl and valid.jsonl (or validation, val, eval, dev), .jsonl before .jsonl.gz, .json
    and .json.gz; without a held-out file there the second is None.
    """
    held_out = None
    if repo := parse_hub_name(data):
        held_out = HubDataset(data, repo).validation_name()
    elif _path_kind(data) == "folder":
        folder, held_out = data, find_in_folder(data, VALID_NAMES)
        data = find_in_folder(folder, TRAIN_NAMES) or ""
        if not data:
            hint = "The folder of --data holds train.jsonl and, for the held-out pairs, valid.jsonl."
            raise UserError("there is no train.jsonl in this folder", where=Where(folder), hint=hint)
    if valid_data is None:
        return data, held_out
    if not parse_hub_name(valid_data) and _path_kind(valid_data) == "folder":
        folder, valid_data = valid_data, find_in_folder(valid_data, VALID_NAMES)
        if valid_data is None:
            raise UserError("there is no valid.jsonl in this folder", where=Where(folder))
    if valid_data == data == "-":
        raise UserError("only one of --data and --valid-data can come from stdin")
    return data, valid_data


def find_in_folder(folder: str, names: tuple[str, ...]) -> str | None:
    """The first file of rows in a folder that has one of these names, or None."""
    candidates = (expand_path(folder) / (name + ending) for name in names for ending in _SUFFIXES)
    return next((str(file) for file in candidates if file.is_file()), None)


def _path_kind(name: str) -> str:
    """ "folder" or "file". Raises `UserError` where there is neither."""
    if name == "-":
        return "file"
    path = expand_path(name)
    try:
        if path.is_dir():
            return "folder"
        if path.exists():
            return "file"
    except OSError as error:
        raise os_error_to_user_error(error, name) from None
    raise os_error_to_user_error(FileNotFoundError(), name)
