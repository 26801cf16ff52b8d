"""Verdicts and scores on disk, so that a repeated or resumed command asks a judge nothing twice.

One file per judge (its `identity`), in ~/.cache/mlx-dpo/verdicts. It begins with a line of JSON that names the judge,
followed by records of one size: a digest of the prompt and the completions, the verdict or score as a float64, NaN for
none, and a checksum. Records are only ever added; after a torn or damaged one the rest of the file is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_dpo.judges.judge import Answer, Comparison
from mlx_dpo.utils.cache_folder import cache_folder

KEY_BYTES = 16
_RECORD = struct.Struct(f"<{KEY_BYTES}sd")
_CHECKSUM = struct.Struct("<I")
_RECORD_BYTES = _RECORD.size + _CHECKSUM.size


def verdict_cache_folder() -> Path:
    """The folder of the cache files."""
    return cache_folder("verdicts")


class VerdictCache:
    """The verdicts of one judge, in memory and, if the judge has an identity and the folder is writable, on disk."""

    def __init__(self, identity: str | None, judge: str) -> None:
        """Open the cache, and read what it holds.

        Args:
            identity: of the judge; None: nothing is kept on disk.
            judge: its name, for display.
        """
        self.values: dict[bytes, float | None] = {}
        self.header = json.dumps({"format": 1, "judge": judge}).encode() + b"\n"
        self.path: Path | None = None
        if identity is None:
            return
        self.path = (
            verdict_cache_folder() / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.verdicts"
        )
        with suppress(OSError), self.path.open("r+b") as file:
            _lock(file.fileno())
            content = file.read()
            self.values, end = _read_records(content)
            if end < len(content):
                file.truncate(end)

    def add(self, values: Mapping[bytes, float | None]) -> None:
        """Store verdicts by their keys, in one write."""
        self.values.update(values)
        if self.path is None or not values:
            return
        content = b"".join(_record(key, value) for key, value in values.items())
        with suppress(OSError):  # a full disk or a folder that is not ours costs the cache, not the verdicts
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                _lock(file.fileno())  # several commands may use the same judge
                file.seek(0, os.SEEK_END)
                file.write(content if file.tell() else self.header + content)


def verdict_key(request: Answer | Comparison) -> bytes:
    """A digest of what a judge is asked."""
    texts = (request.completion,) if isinstance(request, Answer) else (request.first, request.second)
    content = json.dumps([request.prompt, *texts])
    return hashlib.blake2b(content.encode(), digest_size=KEY_BYTES).digest()


def _lock(descriptor: int) -> None:
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _record(key: bytes, value: float | None) -> bytes:
    record = _RECORD.pack(key, np.nan if value is None else value)
    return record + _CHECKSUM.pack(zlib.crc32(record))


def _read_records(content: bytes) -> tuple[dict[bytes, float | None], int]:
    """The values by key, up to the first damaged record, and the offset at which that begins."""
    values: dict[bytes, float | None] = {}
    line, newline, _ = content[:4096].partition(b"\n")
    if not newline:
        return values, 0
    at = len(line) + 1
    while at + _RECORD_BYTES <= len(content):
        record = content[at : at + _RECORD.size]
        if _CHECKSUM.unpack_from(content, at + _RECORD.size)[0] != zlib.crc32(record):
            break
        key, value = _RECORD.unpack(record)
        values[key] = None if np.isnan(value) else value
        at += _RECORD_BYTES
    return values, at


@dataclass(frozen=True)
class VerdictCacheFile:
    """A file of the cache, as `mlx-dpo cache` shows it.

    Attributes:
        path: the file.
        judge: its name; "damaged" if the header can't be read.
        verdicts: how many it holds.
        bytes: its size.
        modified: time of the last write, in seconds since the epoch.
    """

    path: Path
    judge: str
    verdicts: int
    bytes: int
    modified: float


def list_verdict_caches() -> list[VerdictCacheFile]:
    """All files of the cache, the last written first."""
    files = []
    for path in verdict_cache_folder().glob("*.verdicts"):
        with suppress(OSError):
            content, stat = path.read_bytes(), path.stat()
            try:
                judge = str(json.loads(content.partition(b"\n")[0])["judge"])
            except (ValueError, TypeError, KeyError):
                judge = "damaged"
            count = len(_read_records(content)[0])
            files.append(VerdictCacheFile(path, judge, count, stat.st_size, stat.st_mtime))
    return sorted(files, key=lambda file: -file.modified)
