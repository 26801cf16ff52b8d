"""Reference log-probs on disk, so that a second run on the same pairs, with another loss or beta, computes none.

One file per reference policy (`fingerprint`), in ~/.cache/mlx-dpo/references, with a record per micro-batch: its key is
a digest of the token ids, its values are the log-probs of the sequences. The unit is a micro-batch because the last
digits of a log-prob depend on the sequences that it is batched with; so cached values are bit-identical to computed
ones.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.utils.cache_folder import cache_folder
from mlx_dpo.utils.record_file import KEY_BYTES, RecordFile, list_record_files

if TYPE_CHECKING:
    from mlx_dpo.distributed.tensor_parallel import TensorParallelism

LENGTH_FORMAT = struct.Struct("<I")
SUFFIX, TITLE_KEY = ".logps", "model"


def logp_cache_folder() -> Path:
    """The folder of the cache files."""
    return cache_folder("references")


class LogpCache(RecordFile):
    """The log-probs of one reference policy, in memory and, if its folder is writable, on disk."""

    def __init__(self, fingerprint: str, model: str) -> None:
        """Open the cache, and read what it holds.

        Args:
            fingerprint: identifies the reference policy.
            model: its name, for display.
        """
        self.fingerprint = fingerprint
        super().__init__(logp_cache_folder() / f"{fingerprint}{SUFFIX}", (TITLE_KEY, model))

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
            self.add({key: compute(batch)})
        return self.records[key]


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
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for prompt, completion in batch.sequences:
        for ids in (prompt, completion):
            digest.update(LENGTH_FORMAT.pack(len(ids)) + np.array(ids, "<i4").tobytes())
    for mask in batch.completion_masks or ():
        digest.update(LENGTH_FORMAT.pack(len(mask)) + bytes(mask))
    if batch.ld_alpha != 1:
        digest.update(struct.pack("<d", batch.ld_alpha))
    return digest.digest()


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
    files = list_record_files(logp_cache_folder(), SUFFIX, TITLE_KEY)
    return [LogpCacheFile(file.path, file.title, file.values // 2, file.bytes, file.modified) for file in files]
