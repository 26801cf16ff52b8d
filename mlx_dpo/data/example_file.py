"""The examples of a file by number: every row is parsed once at the start, later reads go to disk or to a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from mlx_dpo.data.bounded_cache import BoundedCache
from mlx_dpo.data.data_warnings import DataWarnings
from mlx_dpo.data.examples import Example
from mlx_dpo.data.files.local_files import expand_path
from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.data.row_parsing import RowParser, parse_pairs
from mlx_dpo.data.row_reading import OnBadRow, OnProgress, parse_line, parse_rows
from mlx_dpo.errors import RowError, UserError, Where

MAX_CACHED_BYTES = 2_000_000  # of parsed rows
_ROW_BYTES, _EXAMPLE_BYTES = 800, 200  # of Python objects, about
_BLOCK_BYTES = 1 << 14

RowCache = BoundedCache[int, tuple[int, Sequence[Example]]]  # byte offset: hash of the line, examples


class ExampleFile:
    """The examples of a file by number.

    In memory are 14 bytes per example that say where it is, and a cache of parsed rows of limited size. Safe to read
    from several threads.

    Attributes:
        name: the file's name.
        digest: a digest of all rows.
        warnings: about its rows; none where another process has parsed them.
    """

    def __init__(
        self, name: str, digest: str, file: BinaryIO, parse: RowParser, index: Mapping[str, np.ndarray], cache: RowCache
    ) -> None:
        """Use `open` or `from_index` instead.

        Args:
            name: the file's name.
            digest: a digest of all rows.
            file: JSON lines.
            parse: gives the examples of a row.
            index: of each example its row's byte offset in `file` ("offsets"), its row's line number in the user's file
                ("lines"), and its position among the examples of its row ("within").
            cache: parsed rows.
        """
        self.name, self.digest, self._file, self._parse = name, digest, file, parse
        self._offsets, self._lines, self._positions = (index[key] for key in ("offsets", "lines", "within"))
        self._cache, self._state = cache, _file_state(file)
        self.warnings = DataWarnings()

    @classmethod
    def open(
        cls,
        path: str,
        on_bad_row: OnBadRow | None = None,
        on_progress: OnProgress | None = None,
        parse: RowParser = parse_pairs,
    ) -> ExampleFile:
        """Parse every row of a file, of a Hub dataset, or of stdin; arguments and errors as for `read_rows`."""
        offsets, lines, positions = array("q"), array("I"), array("H")
        digest, cache, warnings = hashlib.blake2b(digest_size=16), RowCache(MAX_CACHED_BYTES), DataWarnings()
        with open_rows(path) as stream:
            file: Any = expand_path(path).open("rb") if stream.seekable else _temporary_file(stream.name)
            state, end = _file_state(file), 0
            for row in parse_rows(stream, on_bad_row, on_progress, parse):
                line = row.line if row.line.endswith(b"\n") else row.line + b"\n"
                digest.update(line if line.endswith(b"}\n") else line.rstrip() + b"\n")
                start = row.offset
                if not stream.seekable:
                    start, end = end, end + len(line)
                    _append(file, line, stream.name)
                if cache.cost < MAX_CACHED_BYTES:  # a larger file's first rows are as good as its last
                    _cache_row(cache, start, line, row.examples)
                warnings.add_examples(row.examples, row.where)
                for position in range(len(row.examples)):
                    offsets.append(start)
                    lines.append(row.where.line or 0)
                    positions.append(position)
        if not offsets:
            raise UserError("holds no pairs", where=Where(stream.name), hint="`mlx-dpo data check` says why.")
        if stream.seekable and state != _file_state(file):
            raise _changed_error(stream.name)
        file.flush()
        index: dict[str, np.ndarray] = {
            "offsets": np.frombuffer(offsets, np.int64),
            "lines": np.frombuffer(lines, np.uint32),
            "within": np.frombuffer(positions, np.uint16),
        }
        opened = cls(stream.name, digest.hexdigest(), file, parse, index, cache)
        opened.warnings = warnings
        return opened

    def index_arrays(self) -> dict[str, np.ndarray]:
        """What another process needs to read the same file by `from_index`, without parsing every row."""
        digests = {"digest": bytes.fromhex(self.digest), "checksum": _checksum(self._file)}
        index = {"offsets": self._offsets, "lines": self._lines, "within": self._positions}
        return index | {name: np.frombuffer(value, np.uint8) for name, value in digests.items()}

    @classmethod
    def from_index(cls, path: str, index: Mapping[str, np.ndarray], parse: RowParser) -> ExampleFile:
        """Open a file of plain JSON lines whose rows another process has parsed.

        Args:
            path: the file on this machine.
            index: the other process's `index_arrays`.
            parse: gives the examples of a row.

        Raises:
            UserError: the two files differ.
        """
        with open_rows(path) as stream:
            file: Any = expand_path(path).open("rb")
        if _checksum(file) != index["checksum"].tobytes():
            hint = "Copy the first machine's file to the others."
            raise UserError("is not the same file on all machines", where=Where(stream.name), hint=hint)
        return cls(stream.name, index["digest"].tobytes().hex(), file, parse, index, RowCache(MAX_CACHED_BYTES))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        """Raises `UserError` if the file was changed."""
        if _file_state(self._file) != self._state:
            raise _changed_error(self.name)
        offset = int(self._offsets[index])
        try:
            return self._row(offset, self.location(index))[int(self._positions[index])]
        except (RowError, IndexError):
            raise _changed_error(self.name) from None

    def location(self, index: int) -> Where:
        """The location of an example's row."""
        return Where(self.name, int(self._lines[index]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _row(self, offset: int, where: Where) -> Sequence[Example]:
        line, cached = self._read_line(offset), self._cache.get(offset)
        if cached is not None and cached[0] == hash(line):
            return cached[1]
        _, examples = parse_line(line, where, self._parse)
        _cache_row(self._cache, offset, line, examples)
        return examples

    def _read_line(self, offset: int) -> bytes:
        line, size = b"", _BLOCK_BYTES
        while not line.endswith(b"\n"):
            block = os.pread(self._file.fileno(), size, offset + len(line))
            if not block:
                return line + b"\n"
            line += block[: block.find(b"\n") + 1 or len(block)]
            size *= 2
        return line


def _cache_row(cache: RowCache, offset: int, line: bytes, examples: Sequence[Example]) -> None:
    cache.put(offset, (hash(line), examples), len(line) + _ROW_BYTES + len(examples) * _EXAMPLE_BYTES)


def _checksum(file: BinaryIO) -> bytes:
    """A digest of all bytes of a file."""
    digest, offset = hashlib.blake2b(digest_size=16), 0
    while block := os.pread(file.fileno(), 1 << 22, offset):
        digest.update(block)
        offset += len(block)
    return digest.digest()


def _file_state(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _changed_error(name: str) -> UserError:
    hint = "Start again, and leave the file as it is while it is in use."
    return UserError("the file was changed after it had been opened", where=Where(name), hint=hint)


def _temporary_file(name: str) -> Any:
    try:
        return tempfile.TemporaryFile(buffering=1 << 20)
    except OSError as error:
        raise _no_space_error(error, name) from None


def _append(file: BinaryIO, line: bytes, name: str) -> None:
    try:
        file.write(line)
    except OSError as error:
        raise _no_space_error(error, name) from None


def _no_space_error(error: OSError, name: str) -> UserError:
    hint = "Set TMPDIR to a folder with room for it, or give an uncompressed .jsonl file, which needs no copy."
    return UserError(
        f"can't be decompressed into {tempfile.gettempdir()}: {error.strerror}", where=Where(name), hint=hint
    )
