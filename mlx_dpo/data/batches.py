"""Which pairs a step sees, and the arrays they become.

The order of an epoch depends on the seed and the epoch alone, so a step's pairs follow from its number: resuming needs
no other position.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from mlx_dpo.data.chat import EncodedPair

T = TypeVar("T")
PAD_TO = 16  # widths come in multiples of this, so that few shapes occur


@dataclass(frozen=True)
class MicroBatch:
    """Pairs that go through the model together: chosen sequences first, then rejected, each prompt + completion.

    Attributes:
        pairs: positions of the pairs in the optimizer batch they were cut from.
        inputs, targets: [2 * pairs, tokens] int32; a target is the token after its input.
        trained: [2 * pairs, tokens] bool; true where the target is a completion token.
        first_target: no sequence has a completion token before this position.
        tokens: tokens that are not padding.
    """

    pairs: tuple[int, ...]
    inputs: mx.array
    targets: mx.array
    trained: mx.array
    first_target: int
    tokens: int


class Epochs:
    """The pairs of every optimizer step: each epoch a fresh shuffle of all, cut into batches, the last one short."""

    def __init__(self, pairs: np.ndarray | int, batch_size: int, seed: int) -> None:
        """pairs: the indices to draw from, or their number."""
        self.indices = np.arange(pairs) if isinstance(pairs, int) else pairs
        self.batch_size, self.seed = batch_size, seed
        self.steps = -(-len(self.indices) // batch_size)
        self._shuffled: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> np.ndarray:
        """Indices of the pairs of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps)
        start = position * self.batch_size
        return self._order(epoch)[start : start + self.batch_size]

    def _order(self, epoch: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._shuffled = (epoch, rng.permutation(self.indices))
        return self._shuffled[1]


def hold_out(pairs: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(trained, held out) indices: `count` pairs, at most a tenth of all, drawn by the seed and kept in file order."""
    count = min(count, pairs // 10)
    order = np.random.default_rng([seed, 2**32]).permutation(pairs)
    return np.sort(order[count:]), np.sort(order[:count])


def micro_batches(pairs: Sequence[EncodedPair], max_tokens: int) -> list[MicroBatch]:
    """Cut an optimizer batch, sorted by length, into micro-batches of at most `max_tokens` padded (or of one pair)."""
    order = sorted(range(len(pairs)), key=lambda i: (_width(pairs[i]), i))
    cuts: list[list[int]] = []
    for i in order:
        # sorted, so the newcomer is the widest
        if cuts and 2 * (len(cuts[-1]) + 1) * _width(pairs[i]) <= max_tokens:
            cuts[-1].append(i)
        else:
            cuts.append([i])
    return [collate([pairs[i] for i in cut], tuple(cut)) for cut in cuts]


def _width(pair: EncodedPair) -> int:
    longest = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) - 1
    return -(-longest // PAD_TO) * PAD_TO


def collate(pairs: Sequence[EncodedPair], positions: tuple[int, ...] | None = None) -> MicroBatch:
    """The arrays of some pairs; `positions` says where in the optimizer batch they stand."""
    sequences = [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]
    width = max(_width(p) for p in pairs)
    inputs, targets = (np.zeros((len(sequences), width), np.int32) for _ in range(2))
    trained = np.zeros((len(sequences), width), np.bool_)
    for row, (prompt, completion) in enumerate(sequences):
        ids = [*prompt, *completion]
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
        trained[row, len(prompt) - 1 : len(ids) - 1] = True
    return MicroBatch(
        pairs=tuple(range(len(pairs))) if positions is None else positions,
        inputs=mx.array(inputs),
        targets=mx.array(targets),
        trained=mx.array(trained),
        first_target=min(len(p.prompt) for p in pairs) - 1,
        tokens=sum(len(prompt) + len(completion) for prompt, completion in sequences),
    )


def ahead(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """The same items, made in a thread up to `depth` ahead of their use. An error in the making is raised here."""
    made: queue.Queue[Callable[[], T] | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Callable[[], T] | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(_giver(item))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(_raiser(error))

    thread = threading.Thread(target=work, daemon=True, name="pairs-ahead")
    thread.start()
    try:
        while (item := made.get()) is not None:
            yield item()
    finally:
        stopped.set()
        thread.join()


def _giver(item: T) -> Callable[[], T]:
    return lambda: item


def _raiser(error: BaseException) -> Callable[[], Any]:
    def raise_it() -> Any:
        raise error

    return raise_it
