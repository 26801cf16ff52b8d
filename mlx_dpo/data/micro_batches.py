"""Which examples a step sees, and the arrays they become.

The order of an epoch depends on the seed and the epoch alone, so what a step sees follows from its number: resuming
needs no other position.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from mlx_dpo.data.chat_encoding import EncodedExample, TokenIds
from mlx_dpo.data.row_formats import Example

T = TypeVar("T")
MAX_PADDING = 8  # positions that completions run together may differ in length, however short they are


@dataclass(frozen=True)
class MicroBatch:
    """Examples that go through the model together.

    Attributes:
        positions: of the examples in the optimizer batch they were cut from.
        sequences: (prompt, completion) token ids: of pairs first all chosen, then all rejected.
        examples: what they were made of.
        tail: what a token counts that stands behind the length of its pair's shorter completion (LD-DPO's alpha).
    """

    batch_indices: tuple[int, ...]
    sequences: tuple[tuple[TokenIds, TokenIds], ...]
    examples: tuple[Example, ...] = ()
    ld_alpha: float = 1.0

    @property
    def completions_per_example(self) -> int:
        """Completions of an example: 2 of a pair, else 1."""
        return len(self.sequences) // len(self.batch_indices)

    @property
    def token_weights(self) -> list[np.ndarray] | None:
        """What each token of each sequence's completion counts; None where all count 1."""
        if self.ld_alpha == 1:
            return None
        lengths = np.array([len(completion) for _, completion in self.sequences]).reshape(
            self.completions_per_example, -1
        )
        shared = np.tile(lengths.min(axis=0), self.completions_per_example)
        return [
            np.where(np.arange(n) < s, 1.0, self.ld_alpha) for n, s in zip(lengths.reshape(-1), shared, strict=True)
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, as a model without shared prompts sees them."""
        return sum(len(prompt) + len(completion) for prompt, completion in self.sequences)


@dataclass(frozen=True)
class PaddedSequences:
    """Sequences as rows of prompt and completion, padded on the right, which no causal model sees.

    Attributes:
        inputs, targets: [sequences, tokens] int32; a target is the token after its input.
        trained: [sequences, tokens] bool; true where the target is a completion token.
    """

    inputs: np.ndarray
    targets: np.ndarray
    completion_mask: np.ndarray


@dataclass(frozen=True)
class CompletionGroup:
    """Some completions of about one length, padded on the right.

    Attributes:
        sequences: which of the micro-batch's they are.
        prompt_of: for each, the row of its prompt.
        inputs, targets: [completions, tokens] int32; the first input is the last prompt token.
        trained: [completions, tokens] bool; true where there is a target.
    """

    sequence_indices: list[int]
    prompt_indices: list[int]
    inputs: np.ndarray
    targets: np.ndarray
    completion_mask: np.ndarray


@dataclass(frozen=True)
class SharedPromptBatch:
    """Distinct prompts without their last token, padded on the left, and the completions that continue them.

    Attributes:
        prompts: [prompts, tokens] int32.
        padding: [prompts] int; padded positions on the left.
        completions: all sequences' completions, in groups of like length.
    """

    prompts: np.ndarray
    left_padding: np.ndarray
    completion_groups: list[CompletionGroup]

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.prompts.size + sum(group.inputs.size for group in self.completion_groups)


FitsMemory = Callable[[MicroBatch], bool]


class ShuffledEpochs:
    """The examples of every optimizer step: each epoch a fresh shuffle of all, cut into batches, the last one short."""

    def __init__(self, examples: np.ndarray | int, batch_size: int, seed: int) -> None:
        """examples: the indices to draw from, or their number."""
        self.indices = np.arange(examples) if isinstance(examples, int) else examples
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = -(-len(self.indices) // batch_size)
        self._shuffled: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> np.ndarray:
        """Indices of the examples of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return self._shuffled_indices(epoch)[start : start + self.batch_size]

    def _shuffled_indices(self, epoch: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._shuffled = (epoch, rng.permutation(self.indices))
        return self._shuffled[1]


def split_held_out(total: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(trained, held out) indices: `count`, at most a tenth of all, drawn by the seed and kept in file order."""
    count = min(count, total // 10)
    order = np.random.default_rng([seed, 2**32]).permutation(total)
    return np.sort(order[count:]), np.sort(order[:count])


def split_into_micro_batches(
    examples: Sequence[EncodedExample], fits_memory: FitsMemory, ld_alpha: float = 1.0
) -> list[MicroBatch]:
    """Cut an optimizer batch into micro-batches of like lengths, each as large as `fits` allows, or of one example."""

    def like(i: int) -> tuple[int, TokenIds, int, int]:
        prompt = examples[i].prompt
        return len(prompt), prompt, examples[i].num_tokens, i

    cuts: list[list[int]] = []
    for i in sorted(range(len(examples)), key=like):
        if cuts and fits_memory(make_micro_batch(examples, (*cuts[-1], i), ld_alpha)):
            cuts[-1].append(i)
        else:
            cuts.append([i])
    return [make_micro_batch(examples, tuple(cut), ld_alpha) for cut in cuts]


def make_micro_batch(
    examples: Sequence[EncodedExample], batch_indices: tuple[int, ...], ld_alpha: float = 1.0
) -> MicroBatch:
    """The examples at some positions of an optimizer batch, as one micro-batch."""
    selected = [examples[i] for i in batch_indices]
    sides = zip(*(one.completions for one in selected), strict=True)
    sequences = tuple((one.prompt, ids) for side in sides for one, ids in zip(selected, side, strict=True))
    return MicroBatch(batch_indices, sequences, tuple(one.example for one in selected), ld_alpha)


def mismatched_example(
    prompt_source: EncodedExample, completion_source: EncodedExample, max_length: int
) -> EncodedExample:
    """A prompt with the completions of another example, cut to the limit."""
    room = max(1, max_length - len(prompt_source.prompt))
    return replace(prompt_source, completions=tuple(ids[:room] for ids in completion_source.completions))


def collate_sequences(sequences: Sequence[tuple[TokenIds, TokenIds]]) -> PaddedSequences:
    """Each sequence as one row."""
    shape = len(sequences), max(len(prompt) + len(completion) - 1 for prompt, completion in sequences)
    inputs, targets, trained = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    for row, (prompt, completion) in enumerate(sequences):
        ids = [*prompt, *completion]
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = ids[1:]
        trained[row, len(prompt) - 1 : len(ids) - 1] = True
    return PaddedSequences(inputs, targets, trained)


def collate_shared_prompts(sequences: Sequence[tuple[TokenIds, TokenIds]]) -> SharedPromptBatch:
    """Each distinct prompt as one row, and each completion as another."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in sequences))}
    width = max(map(len, rows)) - 1
    prompts = np.zeros((len(rows), width), np.int32)
    padding = np.array([width - (len(prompt) - 1) for prompt in rows])
    for prompt, row in rows.items():
        prompts[row, padding[row] :] = prompt[:-1]
    of = [rows[prompt] for prompt, _ in sequences]
    return SharedPromptBatch(
        prompts, padding, [_collate_group(sequences, group, of) for group in _group_by_length(sequences)]
    )


def _group_by_length(sequences: Sequence[tuple[TokenIds, TokenIds]]) -> list[list[int]]:
    """Sequences in groups whose completions differ little in length, longest first."""
    groups: list[list[int]] = []
    for i in sorted(range(len(sequences)), key=lambda i: (-len(sequences[i][1]), i)):
        length = len(sequences[i][1])
        longest = len(sequences[groups[-1][0]][1]) if groups else 0
        if groups and longest - length <= max(MAX_PADDING, longest // 10):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _collate_group(
    sequences: Sequence[tuple[TokenIds, TokenIds]], group: list[int], prompt_of: Sequence[int]
) -> CompletionGroup:
    shape = len(group), len(sequences[group[0]][1])
    inputs, targets, trained = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    for row, (prompt, completion) in enumerate(sequences[i] for i in group):
        inputs[row, : len(completion)] = [prompt[-1], *completion[:-1]]
        targets[row, : len(completion)] = completion
        trained[row, : len(completion)] = True
    return CompletionGroup(group, [prompt_of[i] for i in group], inputs, targets, trained)


def prefetch(items: Iterable[T], depth: int = 4) -> Iterator[T]:
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
