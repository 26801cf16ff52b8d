"""Rows with any number of answers, cut to go through a model: a row's answers together, on their prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mlx_dpo.data.chat_encoding import EncodedExample
from mlx_dpo.data.micro_batches import MicroBatch, split_into_micro_batches
from mlx_dpo.forward.memory_model import SATURATING_TOKENS, MemoryModel


class CompletionChunk(NamedTuple):
    """Some of a row's answers, from its answer `first` on."""

    row_index: int
    first_completion: int
    encoded: EncodedExample


@dataclass(frozen=True)
class ChunkedRows:
    """Some rows' answers in micro-batches.

    Attributes:
        lengths: of each row's answers, in tokens; none where a row is left out.
        parts: micro-batches, each with the piece that each of its positions is.
    """

    completion_lengths: list[np.ndarray]
    micro_batches: list[tuple[MicroBatch, list[CompletionChunk]]]

    @classmethod
    def from_rows(cls, rows: Sequence[EncodedExample | None], budget: MemoryModel) -> ChunkedRows:
        """None among `rows` are left out. Rows of as many answers may share a micro-batch, as pairs do in training."""
        pieces = [piece for i, row in enumerate(rows) if row is not None for piece in _pieces(i, row)]
        alike: dict[int, list[CompletionChunk]] = {}
        for piece in pieces:
            alike.setdefault(len(piece.encoded.completions), []).append(piece)
        parts = [
            (micro, [group[i] for i in micro.batch_indices])
            for group in alike.values()
            for micro in split_into_micro_batches([piece.encoded for piece in group], budget.fits)
        ]
        lengths = [np.array([] if row is None else [len(ids) for ids in row.completions]) for row in rows]
        return cls(lengths, parts)

    def sums_by_row(self, logps: Callable[[MicroBatch], np.ndarray]) -> list[np.ndarray]:
        """[answers] of each row, of [sequences] of each micro-batch."""
        found = [np.zeros(len(lengths)) for lengths in self.completion_lengths]
        for micro, pieces in self.micro_batches:
            for piece, values in zip(pieces, logps(micro).reshape(micro.completions_per_example, -1).T, strict=True):
                found[piece.row_index][piece.first_completion : piece.first_completion + len(values)] = values
        return found


def _pieces(index: int, row: EncodedExample) -> Iterator[CompletionChunk]:
    """As many answers together as take no more of the model than the prompt or `BUSY` tokens do: memory is bounded, and
    the prompt is at most doubled in cost. A pair stays whole, so that its numbers are those of training."""
    longest = max(map(len, row.completions))
    size = max(2, max(SATURATING_TOKENS, len(row.prompt)) // longest)
    for first in range(0, len(row.completions), size):
        yield CompletionChunk(index, first, replace(row, completions=row.completions[first : first + size]))
