"""The processes that train together, and what they tell each other.

What goes between them is mail, in which every rank puts some arrays and gets those of all; and sums of gradients. An
error of one rank is put in the mail too, in place of arrays: whichever mail the others are at, they raise it as well.
So no rank waits for one that has given up, and a rank that dies without a word ends the mail of the others by itself.
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

CONNECT_TIMEOUT = 600.0  # seconds to wait for all ranks: after a death, one learns of it only at the end of its step
BACKEND_ERROR_PREFIXES = (
    "[ring]",
    "[jaccl]",
    "[nccl]",
    "NCCL",
    "[mpi]",
    "MPI",
)  # how mlx begins what it says of a lost rank


class Told(UserError):
    """Another rank's error."""


@dataclass
class Communicator:
    """The ranks of a run.

    Attributes:
        engine: mlx's group of them; None where there is one process only.
        split: whether examples are split between ranks; else every rank sees all of them (tensor parallel).
        sent: bytes that this rank has put on the wire, as a ring does it: of a gathering size - 1 parts as its own, of
            a sum see `ring_bytes`.
    """

    mlx_group: mx.distributed.Group | None = None
    data_parallel: bool = True
    bytes_sent: int = field(default=0, compare=False)

    @classmethod
    def join(cls, data_parallel: bool = True) -> Communicator:
        """Meet the other ranks that a launcher has started; alone where there is no launcher. Raises `RankLost`."""
        if launcher_rank() is None:
            return cls(data_parallel=data_parallel)
        main = threading.current_thread() is threading.main_thread()
        # Waiting inside mlx, it would not hear of being asked to stop: that is to end the process.
        with handle_stop_signals(signal.SIG_DFL) if main else nullcontext():
            return cls(_met(), data_parallel)

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        return 0 if self.mlx_group is None else self.mlx_group.rank()

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return 1 if self.mlx_group is None else self.mlx_group.size()

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def local_items(self, items: Sequence[T] | np.ndarray) -> Any:
        """This rank's of some items that are split between ranks, every `size`th."""
        return items[self.rank :: self.size] if self.data_parallel else items

    def round_robin(self, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """This rank's of some batches that ranks take in turn; an empty one where in the last turn it has none."""
        if not self.data_parallel:
            return list(batches)
        rounds = -(-len(batches) // self.size)
        return [
            batches[i] if i < len(batches) else batches[0][:0] for i in range(self.rank, rounds * self.size, self.size)
        ]

    def all_gather(self, arrays: Arrays) -> list[Arrays]:
        """The arrays of all ranks, in the order of the ranks. Raises the `UserError` of another rank, `RankLost`."""
        return [arrays] if self.mlx_group is None else [load(part) for part in self._exchange(save(arrays))]

    def gather_shards(self, arrays: Arrays) -> list[Arrays]:
        """The arrays of all ranks that examples are split between; this rank's, where it has all examples."""
        parts = self.all_gather(arrays)
        return parts if self.data_parallel else [arrays]

    def gather_and_concatenate(self, arrays: Arrays) -> tuple[Arrays, slice]:
        """Arrays of this rank's examples, [own, ...], as [all, ...], and where its own stand in them."""
        parts = self.gather_shards(arrays)
        counts = [len(next(iter(part.values()))) for part in parts]
        start = sum(counts[: self.rank]) if self.data_parallel else 0
        whole = {name: np.concatenate([part[name] for part in parts]) for name in arrays}
        return whole, slice(start, start + len(next(iter(arrays.values()))))

    def all_gather_json(self, value: Any) -> list[Any]:
        """The plain values of all ranks, as JSON has them, in the order of the ranks."""
        mail = self.all_gather({"json": np.frombuffer(json.dumps(value).encode(), np.uint8)})
        return [json.loads(part["json"].tobytes()) for part in mail]

    def broadcast(self, content: bytes) -> bytes:
        """What rank 0 has; of the others it is not looked at."""
        if self.mlx_group is None:
            return content
        content = content if self.is_main else b""
        buffer = np.zeros(self.all_gather_json(len(content))[0], np.uint8)
        buffer[: len(content)] = np.frombuffer(content, np.uint8)
        return np.array(self._sum(mx.array(buffer))).tobytes()

    def all_sum(self, tree: Any) -> Any:
        """The sum over all ranks of a tree of arrays, evaluated: each dtype's in one flat buffer."""
        if self.mlx_group is None:
            return tree
        named = sorted(tree_flatten(tree), key=lambda one: str(one[1].dtype))
        summed: dict[str, mx.array] = {}
        for dtype in dict.fromkeys(array.dtype for _, array in named):
            alike = [(name, array) for name, array in named if array.dtype == dtype]
            flat = self._sum(mx.concatenate([array.reshape(-1) for _, array in alike]))
            ends = np.cumsum([array.size for _, array in alike])[:-1].tolist()
            for (name, array), part in zip(alike, mx.split(flat, ends), strict=True):
                summed[name] = part.reshape(array.shape)
        mx.eval(summed)
        return tree_unflatten([(name, summed[name]) for name, _ in tree_flatten(tree)])

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Within, a `UserError` of one rank is raised on all, and all come to the end or none.

        Raises: `RankLost` where a rank is gone.
        """
        if self.mlx_group is None:
            yield
            return
        try:
            yield
            self._part()
        except Told:
            raise
        except Interrupted:
            self._part()
            raise
        except UserError as error:
            with suppress(RankLost):  # nobody is left to hear of it
                self._exchange(json.dumps(UserError.to_mapping(error)).encode(), failed=True)
            raise
        except RuntimeError as error:
            if not str(error).startswith(BACKEND_ERROR_PREFIXES):
                raise
            raise RankLost(str(error)) from error

    def _part(self) -> None:
        """Wait until all have come to the end; rank 0, whose work is done then, for nobody who is gone."""
        try:
            self.all_gather({})
        except RankLost:
            if not self.is_main:
                raise

    def _exchange(self, content: bytes, *, failed: bool = False) -> list[bytes]:
        """The contents of all ranks; of some that have failed, these ranks' errors. Others than those raise them."""
        headers = np.array(self._gather(mx.array([failed, len(content)], mx.int32))).reshape(self.size, 2)
        failures = headers[:, 0] == 1
        if failures.any():
            headers[~failures, 1] = 0
            content = content if failed else b""
        parts = self._parts(content, headers[:, 1])
        if failures.any() and not failed:
            first = int(failures.argmax())
            raise _told(first, json.loads(parts[first]))
        return parts

    def _parts(self, content: bytes, lengths: np.ndarray) -> list[bytes]:
        if not lengths.any():
            return [b""] * self.size
        buffer = np.zeros(lengths.max(), np.uint8)
        buffer[: len(content)] = np.frombuffer(content, np.uint8)
        rows = np.array(self._gather(mx.array(buffer))).reshape(self.size, -1)
        return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]

    def _gather(self, mine: mx.array) -> mx.array:
        self.bytes_sent += (self.size - 1) * mine.nbytes
        return self._done(mx.distributed.all_gather(mine, group=self.mlx_group, stream=_stream()))

    def _sum(self, mine: mx.array) -> mx.array:
        self.bytes_sent += ring_all_reduce_bytes(self.size, [mine])
        return self._done(mx.distributed.all_sum(mine, group=self.mlx_group, stream=_stream()))

    def _done(self, result: mx.array) -> mx.array:
        try:
            mx.eval(result)
        except RuntimeError as error:
            raise RankLost(str(error)) from error
        return result


def _met() -> mx.distributed.Group:
    """mlx's group, once all ranks are there. Raises `RankLost`."""
    began = time.monotonic()
    while True:
        try:
            return mx.distributed.init(strict=True)
        except RuntimeError as error:
            if "onnect" not in str(error) or time.monotonic() - began > CONNECT_TIMEOUT:
                raise RankLost(f"the other ranks can't be reached: {error}") from error


def _stream() -> mx.DeviceType | None:
    """Where to wait for others: not on Metal's GPU, whose watchdog ends what waits for some seconds there."""
    return None if is_nccl() else mx.cpu


def ring_all_reduce_bytes(size: int, arrays: Sequence[mx.array]) -> int:
    """Bytes that each of `size` ranks sends where arrays are summed around a ring, each dtype's in one flat buffer.

    The buffer is cut into as many parts as there are ranks, and all but one of them go by, twice.
    """
    counts = Counter[mx.Dtype]()
    for array in arrays:
        counts[array.dtype] += array.size
    return sum(2 * (size - 1) * -(-count // size) * dtype.size for dtype, count in counts.items())


def _told(rank: int, error: Mapping[str, Any]) -> Told:
    told = UserError.from_mapping(error)
    return Told(f"{told.message} (on rank {rank})", where=told.where, field=told.field, hint=told.hint)


SINGLE_PROCESS = Communicator()
