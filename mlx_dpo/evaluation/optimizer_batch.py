"""Optimizer batches: examples that are encoded when first needed, split into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.micro_batches import MicroBatch, mismatched_example, split_into_micro_batches
from mlx_dpo.data.prefetching import prefetch
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Communicator
from mlx_dpo.errors import Where
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.objectives import WeightedLoss


@dataclass(frozen=True)
class IndexedExample:
    """An example to train on or to measure, encoded when it is first needed.

    Attributes:
        index: its row in the reference table, from 0.
        location: where it comes from, for messages.
        encode: gives its token ids. Raises `RowError`.
    """

    index: int
    location: Where
    encode: Callable[[], EncodedExample]

    @cached_property
    def encoded(self) -> EncodedExample:
        """Its token ids."""
        return self.encode()


def indexed_examples(examples: EncodedExamples, indices: np.ndarray) -> list[IndexedExample]:
    """Return some examples of a source by their indices, [examples]."""
    return [IndexedExample(i, examples.source.location(i), partial(examples.__getitem__, i)) for i in indices.tolist()]


@dataclass(frozen=True)
class OptimizerBatch:
    """The examples of an optimizer batch that this process runs.

    Attributes:
        size: number of examples in the whole optimizer batch, those of other processes included.
        examples: this process's examples.
        micro_batches: these examples, cut to go through the model.
        mismatched_micro_batches: their prompts with other examples' completions, if the loss needs their KL.
    """

    size: int
    examples: Sequence[IndexedExample]
    micro_batches: list[MicroBatch]
    mismatched_micro_batches: list[MicroBatch] = field(default_factory=list)

    def example_indices(self, micro: MicroBatch) -> np.ndarray:
        """Return the indices of a micro-batch's examples."""
        return np.array([self.examples[i].index for i in micro.batch_indices], np.int64)

    @property
    def indices_in_order(self) -> np.ndarray:
        """Indices of its examples in the order of the micro-batches."""
        return np.concatenate([np.zeros(0, np.int64), *map(self.example_indices, self.micro_batches)])


def optimizer_batches(
    examples: EncodedExamples,
    order: Iterable[np.ndarray],
    memory_model: MemoryModel,
    loss: WeightedLoss,
    communicator: Communicator = SINGLE_PROCESS,
) -> Iterator[OptimizerBatch]:
    """Yield batches of a source, encoded in a thread ahead of their use.

    Args:
        examples: the source.
        order: indices of each batch's examples.
        memory_model: decides which micro-batches fit.
        loss: the loss that they are for.
        communicator: ranks that share each batch.
    """
    limit = examples.encoder.max_length
    return prefetch(
        make_optimizer_batch(indexed_examples(examples, indices), memory_model, loss, limit, communicator)
        for indices in order
    )


def make_optimizer_batch(
    examples: Sequence[IndexedExample],
    memory_model: MemoryModel,
    loss: WeightedLoss,
    max_length: int,
    communicator: Communicator = SINGLE_PROCESS,
) -> OptimizerBatch:
    """Cut this rank's share of an optimizer batch into micro-batches.

    Args:
        examples: all examples of the batch, on every rank.
        memory_model: decides which micro-batches fit.
        loss: the loss that they are for.
        max_length: longest prompt + completion, in tokens.
        communicator: ranks that share the batch.
    """
    local = communicator.local_items(examples)
    encoded = [example.encoded for example in local]
    mismatched: list[MicroBatch] = []
    if loss.needs_kl and len(examples) > 1:  # a single example has no other's completion
        in_order = sorted(examples, key=lambda example: example.index)
        local_indices = {example.index for example in local}
        pairs = [
            mismatched_example(example.encoded, previous.encoded, max_length)
            for example, previous in zip(in_order, [in_order[-1], *in_order[:-1]], strict=True)
            if example.index in local_indices
        ]
        mismatched = split_into_micro_batches(pairs, memory_model.fits)
    micro_batches = split_into_micro_batches(encoded, memory_model.fits, loss.ld_alpha)
    return OptimizerBatch(len(examples), local, micro_batches, mismatched)
