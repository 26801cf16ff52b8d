"""Arrays of numbers by key, in a file to which records are only added: the format of the caches on disk.

The file begins with a line of JSON, followed by records: a key of 16 bytes, the number of values, the values as
float64, and a checksum. After a torn or damaged record the rest of the file is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

KEY_BYTES = 16
COUNT_FORMAT, CHECKSUM_FORMAT = struct.Struct("<I"), struct.Struct("<I")
MAX_VALUES = 1 << 16  # of a record; more is damage


class RecordFile:
    """The records of a file, in memory and, if its folder is writable, on disk. Several processes may share the file.

    Attributes:
        path: the file.
        records: float64 values by key.
    """

    def __init__(self, path: Path, title: tuple[str, str]) -> None:
        """Read what the file holds, if it exists.

        Args:
            path: the file.
            title: a key and its value for the first line, for display.
        """
        self.path = path
        self.records: dict[bytes, np.ndarray] = {}
        self._header = json.dumps({"format": 1, title[0]: title[1]}).encode() + b"\n"
        with suppress(OSError), path.open("rb") as file:
            _lock(file)
            content = file.read()
            parsed = list(_parse_records(content))
            self.records = {key: values for key, values, _ in parsed}
            end = parsed[-1][2] if parsed else 0
            if end < len(content):
                os.truncate(path, end)

    def add(self, records: Mapping[bytes, np.ndarray]) -> None:
        """Add records, in one write.

        Args:
            records: float64 values by key.
        """
        self.records.update(records)
        content = b"".join(_pack(key, values) for key, values in records.items())
        with suppress(OSError):  # a full disk or a folder that is not ours costs the cache, not the work
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                _lock(file)
                file.seek(0, os.SEEK_END)
                file.write(content if file.tell() else self._header + content)


@dataclass(frozen=True)
class RecordFileSummary:
    """What is in a file of records.

    Attributes:
        path: the file.
        title: from its first line; "damaged" if that can't be read.
        values: values of all records.
        bytes: its size.
        modified: time of the last write, in seconds since the epoch.
    """

    path: Path
    title: str
    values: int
    bytes: int
    modified: float


def list_record_files(folder: Path, suffix: str, title_key: str) -> list[RecordFileSummary]:
    """Summarize the files of a folder, the last written first.

    Args:
        folder: the folder.
        suffix: ending of the files' names.
        title_key: key of the title in the first line.
    """
    summaries = []
    for path in folder.glob(f"*{suffix}"):
        with suppress(OSError):
            content, stat = path.read_bytes(), path.stat()
            try:
                title = str(_parse_header(content)[0].get(title_key))
            except ValueError:
                title = "damaged"
            num_values = sum(len(values) for _, values, _ in _parse_records(content))
            summaries.append(RecordFileSummary(path, title, num_values, stat.st_size, stat.st_mtime))
    return sorted(summaries, key=lambda summary: -summary.modified)


def _lock(file: IO[bytes]) -> None:
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)


def _pack(key: bytes, values: np.ndarray) -> bytes:
    record = key + COUNT_FORMAT.pack(len(values)) + values.astype("<f8").tobytes()
    return record + CHECKSUM_FORMAT.pack(zlib.crc32(record))


def _parse_header(content: bytes) -> tuple[dict[str, object], int]:
    """The first line, and the offset of the first record. Raises `ValueError` if it is not a file of records."""
    line, newline, _ = content[:4096].partition(b"\n")
    header = json.loads(line)
    if not newline or not isinstance(header, dict) or header.get("format") != 1:
        raise ValueError("not a file of records")
    return header, len(line) + 1


def _parse_records(content: bytes) -> Iterator[tuple[bytes, np.ndarray, int]]:
    """(key, values, end offset) of each record, up to the first damaged one."""
    with suppress(ValueError, struct.error):
        _, at = _parse_header(content)
        while at < len(content):
            (count,) = COUNT_FORMAT.unpack_from(content, at + KEY_BYTES)
            end = at + KEY_BYTES + COUNT_FORMAT.size + 8 * count
            (check,) = CHECKSUM_FORMAT.unpack_from(content, end)
            if count > MAX_VALUES or check != zlib.crc32(content[at:end]):
                return
            values = np.frombuffer(content[at + KEY_BYTES + COUNT_FORMAT.size : end], "<f8").astype(np.float64)
            key, at = content[at : at + KEY_BYTES], end + CHECKSUM_FORMAT.size
            yield key, values, at
