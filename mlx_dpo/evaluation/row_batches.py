"""Batches of rows with any number of completions: a row's completions go through the model together, on one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.micro_batches import split_into_micro_batches
from mlx_dpo.data.prefetching import prefetch
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.optimizer_batch import IndexedExample, OptimizerBatch
from mlx_dpo.forward.memory_model import SATURATING_TOKENS, MemoryModel


def index_batches(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Split indices into consecutive batches of `size`; the last one may be smaller."""
    return (indices[i : i + size] for i in range(0, len(indices), size))


def row_batches(
    examples: EncodedExamples, order: Iterable[np.ndarray], memory_model: MemoryModel
) -> Iterator[OptimizerBatch]:
    """Yield a batch for each array of indices, made in a thread ahead of its use.

    Pairs and single completions are split into micro-batches as in training. A row with many completions is split into
    chunks; `OptimizerBatch.examples` then holds it once for each chunk. Rows dropped for their length are skipped.

    Args:
        examples: the examples.
        order: arrays of indices of examples, one per batch.
        memory_model: decides which micro-batches fit.
    """
    return prefetch(
        make_row_batch({int(i): examples.encode(int(i)) for i in indices}, memory_model) for indices in order
    )


def make_row_batch(rows: dict[int, EncodedExample | None], memory_model: MemoryModel) -> OptimizerBatch:
    """Split encoded rows, by their index, into micro-batches; only rows that are None are left out."""
    chunks = list[IndexedExample]()
    for index, row in rows.items():
        for part in [] if row is None else _chunks(row):
            chunks.append(IndexedExample(index, Where(f"row {index}"), partial(replace, part)))
    by_size: dict[int, list[int]] = {}
    for position, chunk in enumerate(chunks):
        by_size.setdefault(len(chunk.encoded.completions), []).append(position)
    micro_batches = [
        replace(micro, batch_indices=tuple(positions[i] for i in micro.batch_indices))
        for positions in by_size.values()
        for micro in split_into_micro_batches([chunks[i].encoded for i in positions], memory_model.fits)
    ]
    return OptimizerBatch(len(rows), chunks, micro_batches)


def by_example(batch: OptimizerBatch, values: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Collect each example's completions from the micro-batches of a batch.

    Args:
        batch: of examples, some of which may be in chunks.
        values: for each micro-batch, [sequences].

    Returns:
        By index of the example, [completions] in the example's order. Keys are in the order of the micro-batches.
    """
    chunks: dict[int, dict[int, np.ndarray]] = {}
    for micro, of_sequences in zip(batch.micro_batches, values, strict=True):
        of_chunks = of_sequences.reshape(micro.completions_per_example, -1).T
        for position, index, chunk in zip(micro.batch_indices, batch.example_indices(micro), of_chunks, strict=True):
            chunks.setdefault(int(index), {})[position] = chunk
    return {index: np.concatenate([parts[i] for i in sorted(parts)]) for index, parts in chunks.items()}


def _chunks(row: EncodedExample) -> Iterator[EncodedExample]:
    """Split a row's completions so that a chunk's take no more tokens than the prompt, or `SATURATING_TOKENS`.

    That bounds the memory, and costs at most twice the prompt. A pair is never split, so that its numbers are those of
    training.
    """
    longest = max(map(len, row.completions))
    size = max(2, max(SATURATING_TOKENS, len(row.prompt)) // longest)
    for start in range(0, len(row.completions), size):
        yield row.select_completions(slice(start, start + size))
