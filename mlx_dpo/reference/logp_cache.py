"""Reference log-probs on disk, so that a second run on the same pairs, with another loss or beta, computes none.

One file per reference policy (`fingerprint`), in ~/.cache/mlx-dpo/references. It begins with a line of JSON that names
the model, followed by one record per micro-batch: a digest of its token ids, the number of its sequences, their
log-probs in float64, and a checksum. The unit is a micro-batch because the last digits of a log-prob depend on the
sequences that it is batched with; so cached values are bit-identical to computed ones. Records are only ever added;
after a torn or damaged record the rest of the file is dropped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.utils.cache_folder import cache_folder

if TYPE_CHECKING:
    from mlx_dpo.distributed.tensor_parallel import TensorParallelism

DIGEST_BYTES, COUNT_FORMAT, CHECKSUM_FORMAT = 16, struct.Struct("<I"), struct.Struct("<I")
MAX_SEQUENCES = 1 << 16  # sequences in a micro-batch; more is damage


def logp_cache_folder() -> Path:
    """The folder of the cache files."""
    return cache_folder("references")


class LogpCache:
    """The log-probs of one reference policy, in memory and, if its folder is writable, on disk."""

    def __init__(self, fingerprint: str, model: str) -> None:
        """Open the cache, and read what it holds.

        Args:
            fingerprint: identifies the reference policy.
            model: its name, for display.
        """
        self.fingerprint = fingerprint
        self.path = logp_cache_folder() / f"{fingerprint}.logps"
        self.header = json.dumps({"format": 1, "model": model}).encode() + b"\n"
        self.records: dict[bytes, np.ndarray] = {}
        with suppress(OSError):
            content = self.path.read_bytes()
            records = list(_records(content))
            self.records = {key: values for key, values, _ in records}
            good = records[-1][2] if records else 0
            if good < len(content):
                os.truncate(self.path, good)

    def __contains__(self, batch: MicroBatch) -> bool:
        return _key(batch) in self.records

    def get_or_compute(self, batch: MicroBatch, compute: Callable[[MicroBatch], np.ndarray]) -> np.ndarray:
        """Return a micro-batch's log-probs, from the cache if possible; otherwise compute and store them.

        Args:
            batch: the micro-batch.
            compute: returns [sequences] log-probs, nats, of a micro-batch.

        Returns:
            [sequences] log-probs, nats.
        """
        key = _key(batch)
        if key not in self.records:
            self.records[key] = compute(batch)
            self._add(key, self.records[key])
        return self.records[key]

    def _add(self, key: bytes, values: np.ndarray) -> None:
        record = key + COUNT_FORMAT.pack(len(values)) + values.astype("<f8").tobytes()
        record += CHECKSUM_FORMAT.pack(zlib.crc32(record))
        with suppress(OSError):  # a full disk or a folder that is not ours costs the cache, not the run
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # ranks of one machine share the file
                file.seek(0, os.SEEK_END)
                file.write(record if file.tell() else self.header + record)


class MainRankLogpCache:
    """The first rank's cache for all ranks of a sharded model: either all of them compute or none."""

    def __init__(self, shards: TensorParallelism, fingerprint: str, model: str) -> None:
        """Open the cache on the first rank.

        Args:
            shards: the ranks among which the model is sharded.
            fingerprint: identifies the reference policy.
            model: its name, for display.
        """
        name = f"{fingerprint}-{shards.group.size()}"  # rounding depends on the number of ranks
        self.shards, self.fingerprint = shards, fingerprint
        self.main_cache = LogpCache(name, model) if shards.group.rank() == 0 else None

    def get_or_compute(self, batch: MicroBatch, compute: Callable[[MicroBatch], np.ndarray]) -> np.ndarray:
        """See `LogpCache.get_or_compute`."""
        known = self.shards.all_min(self.main_cache is None or batch in self.main_cache)
        values = np.zeros(len(batch.sequences)) if known else compute(batch)
        if self.main_cache is not None:
            computed = values
            values = self.main_cache.get_or_compute(batch, lambda _: computed)
        return self.shards.broadcast(values)


def _key(batch: MicroBatch) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for prompt, completion in batch.sequences:
        for ids in (prompt, completion):
            digest.update(COUNT_FORMAT.pack(len(ids)) + np.array(ids, "<i4").tobytes())
    for mask in batch.completion_masks or ():
        digest.update(COUNT_FORMAT.pack(len(mask)) + bytes(mask))
    if batch.ld_alpha != 1:
        digest.update(struct.pack("<d", batch.ld_alpha))
    return digest.digest()


def _header(content: bytes) -> tuple[str, int]:
    """The model's name, and the offset of the first record. Raises `ValueError` if it is not a cache file."""
    line, newline, _ = content[:4096].partition(b"\n")
    header = json.loads(line)
    if not newline or not isinstance(header, dict) or header.get("format") != 1:
        raise ValueError("not a cache of log-probs")
    return str(header.get("model")), len(line) + 1


def _records(content: bytes) -> Iterator[tuple[bytes, np.ndarray, int]]:
    """(key, log-probs, end offset) of each record, up to the first damaged one."""
    with suppress(ValueError, struct.error):
        _, at = _header(content)
        while at < len(content):
            (count,) = COUNT_FORMAT.unpack_from(content, at + DIGEST_BYTES)
            end = at + DIGEST_BYTES + COUNT_FORMAT.size + 8 * count
            (check,) = CHECKSUM_FORMAT.unpack_from(content, end)
            if count > MAX_SEQUENCES or check != zlib.crc32(content[at:end]):
                return
            values = np.frombuffer(content[at + DIGEST_BYTES + COUNT_FORMAT.size : end], "<f8").astype(np.float64)
            key, at = content[at : at + DIGEST_BYTES], end + CHECKSUM_FORMAT.size
            yield key, values, at


@dataclass(frozen=True)
class LogpCacheFile:
    """A file of the cache, as `mlx-dpo cache` shows it.

    Attributes:
        path: the file.
        model: name of the reference model; "damaged" if its header can't be read.
        pairs: half the number of sequences in it.
        bytes: its size.
        modified: time of the last write, in seconds since the epoch.
    """

    path: Path
    model: str
    pairs: int
    bytes: int
    modified: float


def list_logp_caches() -> list[LogpCacheFile]:
    """All files of the cache, the last written first."""
    files = []
    for path in logp_cache_folder().glob("*.logps"):
        with suppress(OSError):
            content, stat = path.read_bytes(), path.stat()
            pairs = sum(len(values) for _, values, _ in _records(content)) // 2
            try:
                model = _header(content)[0]
            except ValueError:
                model = "damaged"
            files.append(LogpCacheFile(path, model, pairs, stat.st_size, stat.st_mtime))
    return sorted(files, key=lambda file: -file.modified)
