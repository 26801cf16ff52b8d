"""Verdicts and scores on disk, so that a repeated or resumed command asks a judge nothing twice.

One file per judge (its `identity`), in ~/.cache/mlx-dpo/verdicts, with a record per request: its key is a digest of the
prompt and the completions, its value the verdict or score, NaN for none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_dpo.judges.judge import Answer, Comparison
from mlx_dpo.utils.cache_folder import cache_folder
from mlx_dpo.utils.record_file import KEY_BYTES, RecordFile, list_record_files

SUFFIX, TITLE_KEY = ".verdicts", "judge"


def verdict_cache_folder() -> Path:
    """The folder of the cache files."""
    return cache_folder("verdicts")


class VerdictCache:
    """The verdicts of one judge, in memory and, if the judge has an identity and the folder is writable, on disk.

    Attributes:
        values: verdicts or scores by key; None where the judge gave none.
    """

    def __init__(self, identity: str | None, judge: str) -> None:
        """Open the cache, and read what it holds.

        Args:
            identity: of the judge; None: nothing is kept on disk.
            judge: its name, for display.
        """
        self.values: dict[bytes, float | None] = {}
        self._file: RecordFile | None = None
        if identity is not None:
            name = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
            self._file = RecordFile(verdict_cache_folder() / f"{name}{SUFFIX}", (TITLE_KEY, judge))
            numbers = {key: float(values[0]) for key, values in self._file.records.items()}
            self.values = {key: None if np.isnan(number) else number for key, number in numbers.items()}

    @property
    def path(self) -> Path | None:
        """The file; None if nothing is kept on disk."""
        return self._file.path if self._file else None

    def add(self, values: Mapping[bytes, float | None]) -> None:
        """Store verdicts by their keys, in one write."""
        self.values.update(values)
        if self._file and values:
            self._file.add({key: np.array([np.nan if value is None else value]) for key, value in values.items()})


def verdict_key(request: Answer | Comparison) -> bytes:
    """A digest of what a judge is asked."""
    texts = (request.completion,) if isinstance(request, Answer) else (request.first, request.second)
    content = json.dumps([request.prompt, *texts])
    return hashlib.blake2b(content.encode(), digest_size=KEY_BYTES).digest()


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
    files = list_record_files(verdict_cache_folder(), SUFFIX, TITLE_KEY)
    return [VerdictCacheFile(file.path, file.title, file.values, file.bytes, file.modified) for file in files]
