"""The processes (ranks) that train one adapter together, and how they exchange data.

Ranks exchange arrays by all-gather and gradients by all-reduce. If a rank fails with a `UserError`, it sends that
error in place of its arrays, and every other rank raises it at its next all-gather: no rank waits for one that has
given up. A rank that dies makes the next exchange of the others fail.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from safetensors.numpy import load, save

from mlx_dpo.distributed.rank_environment import is_nccl, launcher_rank
from mlx_dpo.errors import Interrupted, RankLost, UserError
from mlx_dpo.utils.signals import handle_stop_signals

Arrays = dict[str, np.ndarray]
T = TypeVar("T")

CONNECT_TIMEOUT = 600.0  # seconds to wait for all ranks: after a crash, some notice only at the end of their step
BACKEND_ERROR_PREFIXES = ("[ring]", "[jaccl]", "[nccl]", "NCCL", "[mpi]", "MPI")  # of mlx's errors about a lost rank


class RemoteError(UserError):
    """Another rank's error, raised on this one."""


@dataclass
class Communicator:
    """The ranks of a run.

    Attributes:
        mlx_group: mlx's group of ranks; None with a single process.
        data_parallel: whether each rank trains on its own part of the examples; else all ranks see all of them (tensor
            parallelism).
        bytes_sent: bytes that this rank has sent, for a ring: in an all-gather its array to size - 1 ranks, for
            an all-reduce see `ring_all_reduce_bytes`.
    """

    mlx_group: mx.distributed.Group | None = None
    data_parallel: bool = True
    bytes_sent: int = field(default=0, compare=False)

    @classmethod
    def join(cls, data_parallel: bool = True) -> Communicator:
        """Connect to the other ranks that a launcher has started; without a launcher, stay a single process.

        Raises:
            RankLost: they can't be reached.
        """
        if launcher_rank() is None:
            return cls(data_parallel=data_parallel)
        is_main_thread = threading.current_thread() is threading.main_thread()
        # While mlx waits for the others it calls no signal handler, so a signal has to end the process.
        with handle_stop_signals(signal.SIG_DFL) if is_main_thread else nullcontext():
            return cls(_connect(), data_parallel)

    @property
    def rank(self) -> int:
        """The rank of this process, from 0."""
        return 0 if self.mlx_group is None else self.mlx_group.rank()

    @property
    def size(self) -> int:
        """The number of ranks."""
        return 1 if self.mlx_group is None else self.mlx_group.size()

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def local_items(self, items: Sequence[T] | np.ndarray) -> Any:
        """This rank's part of some items: every `size`th if data parallel, else all."""
        return items[self.rank :: self.size] if self.data_parallel else items

    def round_robin(self, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """This rank's batches, if ranks take turns; the last is empty if there is none left for this rank."""
        if not self.data_parallel:
            return list(batches)
        num_rounds = -(-len(batches) // self.size)
        indices = range(self.rank, num_rounds * self.size, self.size)
        return [batches[i] if i < len(batches) else batches[0][:0] for i in indices]

    def all_gather(self, arrays: Arrays) -> list[Arrays]:
        """The arrays of all ranks, in rank order; names and shapes may differ between ranks.

        Raises:
            RemoteError: another rank failed.
            RankLost: the connection to another rank is lost.
        """
        if self.mlx_group is None:
            return [arrays]
        return [load(content) for content in self._exchange(save(arrays))]

    def gather_shards(self, arrays: Arrays) -> list[Arrays]:
        """The arrays of every part of the examples: of all ranks if data parallel, else this rank's alone."""
        gathered = self.all_gather(arrays)
        return gathered if self.data_parallel else [arrays]

    def gather_and_concatenate(self, arrays: Arrays) -> tuple[Arrays, slice]:
        """Concatenate arrays of all ranks' examples.

        Args:
            arrays: arrays of this rank's examples, [examples here, ...]; empty on a rank without examples.

        Returns:
            The arrays as [all examples, ...], and the slice of this rank's examples.
        """
        gathered = self.gather_shards(arrays)
        counts = [len(next(iter(shard.values()), ())) for shard in gathered]
        start = sum(counts[: self.rank]) if self.data_parallel else 0
        names = next((shard for shard in gathered if shard), {})
        whole = {name: np.concatenate([shard[name] for shard in gathered if shard]) for name in names}
        return whole, slice(start, start + len(next(iter(arrays.values()), ())))

    def all_gather_json(self, value: Any) -> list[Any]:
        """The plain values of all ranks, in rank order; what JSON can hold."""
        gathered = self.all_gather({"json": np.frombuffer(json.dumps(value).encode(), np.uint8)})
        return [json.loads(arrays["json"].tobytes()) for arrays in gathered]

    def broadcast(self, content: bytes) -> bytes:
        """Rank 0's content; that of other ranks is ignored."""
        if self.mlx_group is None:
            return content
        content = content if self.is_main else b""
        buffer = np.zeros(self.all_gather_json(len(content))[0], np.uint8)
        buffer[: len(content)] = np.frombuffer(content, np.uint8)
        return np.array(self._all_reduce(mx.array(buffer))).tobytes()

    def all_sum(self, tree: Any) -> Any:
        """The sum of all ranks' trees of arrays, evaluated; arrays of one dtype travel in one flat buffer."""
        if self.mlx_group is None:
            return tree
        leaves = tree_flatten(tree)
        summed: dict[str, mx.array] = {}
        for dtype in sorted({array.dtype for _, array in leaves}, key=str):
            same = [(name, array) for name, array in leaves if array.dtype == dtype]
            flat = self._all_reduce(mx.concatenate([array.reshape(-1) for _, array in same]))
            ends = np.cumsum([array.size for _, array in same])[:-1].tolist()
            for (name, array), part in zip(same, mx.split(flat, ends), strict=True):
                summed[name] = part.reshape(array.shape)
        mx.eval(summed)
        return tree_unflatten([(name, summed[name]) for name, _ in leaves])

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Within this context, a `UserError` on one rank is raised on all, and either all ranks finish or none does.

        Raises:
            RankLost: the connection to another rank is lost.
        """
        if self.mlx_group is None:
            yield
            return
        try:
            yield
            self._finish()
        except RemoteError:
            raise
        except Interrupted:
            self._finish()
            raise
        except UserError as error:
            with suppress(RankLost):  # no rank is left to receive it
                self._exchange(json.dumps(UserError.to_mapping(error)).encode(), failed=True)
            raise
        except RuntimeError as error:
            if not str(error).startswith(BACKEND_ERROR_PREFIXES):
                raise
            raise RankLost(str(error)) from error

    def _finish(self) -> None:
        """Wait until all ranks have finished. Rank 0, whose own work is complete, doesn't need a lost one."""
        try:
            self.all_gather({})
        except RankLost:
            if not self.is_main:
                raise

    def _exchange(self, content: bytes, *, failed: bool = False) -> list[bytes]:
        """All ranks' contents. If some ranks failed, theirs are errors, which the ranks that did not fail raise."""
        headers = np.array(self._all_gather(mx.array([failed, len(content)], mx.int32))).reshape(self.size, 2)
        failures = headers[:, 0] == 1
        if failures.any():
            headers[~failures, 1] = 0
            content = content if failed else b""
        contents = self._exchange_bytes(content, headers[:, 1])
        if failures.any() and not failed:
            first = int(failures.argmax())
            raise _remote_error(first, json.loads(contents[first]))
        return contents

    def _exchange_bytes(self, content: bytes, lengths: np.ndarray) -> list[bytes]:
        if not lengths.any():
            return [b""] * self.size
        buffer = np.zeros(lengths.max(), np.uint8)
        buffer[: len(content)] = np.frombuffer(content, np.uint8)
        rows = np.array(self._all_gather(mx.array(buffer))).reshape(self.size, -1)
        return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]

    def _all_gather(self, array: mx.array) -> mx.array:
        self.bytes_sent += (self.size - 1) * array.nbytes
        return _evaluated(mx.distributed.all_gather(array, group=self.mlx_group, stream=_stream()))

    def _all_reduce(self, array: mx.array) -> mx.array:
        self.bytes_sent += ring_all_reduce_bytes(self.size, [array])
        return _evaluated(mx.distributed.all_sum(array, group=self.mlx_group, stream=_stream()))


def _connect() -> mx.distributed.Group:
    """Wait until all ranks are there, and return mlx's group."""
    start = time.monotonic()
    while True:
        try:
            return mx.distributed.init(strict=True)
        except RuntimeError as error:
            if "onnect" not in str(error) or time.monotonic() - start > CONNECT_TIMEOUT:
                raise RankLost(f"can't connect to the other ranks: {error}") from error


def _evaluated(result: mx.array) -> mx.array:
    try:
        mx.eval(result)
    except RuntimeError as error:
        raise RankLost(str(error)) from error
    return result


def _stream() -> mx.DeviceType | None:
    """The stream to wait for other ranks on: not Metal's GPU, whose watchdog ends a command that waits for seconds."""
    return None if is_nccl() else mx.cpu


def ring_all_reduce_bytes(size: int, arrays: Sequence[mx.array]) -> int:
    """Bytes that each of `size` ranks sends to sum arrays around a ring, each dtype's in one flat buffer.

    The buffer is split into `size` parts, all but one of which each rank sends twice (reduce-scatter, all-gather).
    """
    counts = Counter[mx.Dtype]()
    for array in arrays:
        counts[array.dtype] += array.size
    return sum(2 * (size - 1) * -(-count // size) * dtype.size for dtype, count in counts.items())


def _remote_error(rank: int, mapping: Mapping[str, Any]) -> RemoteError:
    error = RemoteError.from_mapping(mapping)
    return RemoteError(f"{error.message} (on rank {rank})", where=error.where, field=error.field, hint=error.hint)


SINGLE_PROCESS = Communicator()
