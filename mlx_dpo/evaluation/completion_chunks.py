"""Rows with any number of answers, cut to go through a model: a row's answers together, on their prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mlx_dpo.data.chat_encoding import Encoded
from mlx_dpo.data.micro_batches import MicroBatch, micro_batches
from mlx_dpo.forward.memory_model import BUSY, Budget


class Piece(NamedTuple):
    """Some of a row's answers, from its answer `first` on."""

    row: int
    first: int
    encoded: Encoded


@dataclass(frozen=True)
class Cut:
    """Some rows' answers in micro-batches.

    Attributes:
        lengths: of each row's answers, in tokens; none where a row is left out.
        parts: micro-batches, each with the piece that each of its positions is.
    """

    lengths: list[np.ndarray]
    parts: list[tuple[MicroBatch, list[Piece]]]

    @classmethod
    def of(cls, rows: Sequence[Encoded | None], budget: Budget) -> Cut:
        """None among `rows` are left out. Rows of as many answers may share a micro-batch, as pairs do in training."""
        pieces = [piece for i, row in enumerate(rows) if row is not None for piece in _pieces(i, row)]
        alike: dict[int, list[Piece]] = {}
        for piece in pieces:
            alike.setdefault(len(piece.encoded.completions), []).append(piece)
        parts = [
            (micro, [group[i] for i in micro.positions])
            for group in alike.values()
            for micro in micro_batches([piece.encoded for piece in group], budget.fits)
        ]
        lengths = [np.array([] if row is None else [len(ids) for ids in row.completions]) for row in rows]
        return cls(lengths, parts)

    def sums(self, logps: Callable[[MicroBatch], np.ndarray]) -> list[np.ndarray]:
        """[answers] of each row, of [sequences] of each micro-batch."""
        found = [np.zeros(len(lengths)) for lengths in self.lengths]
        for micro, pieces in self.parts:
            for piece, values in zip(pieces, logps(micro).reshape(micro.sides, -1).T, strict=True):
                found[piece.row][piece.first : piece.first + len(values)] = values
        return found


def _pieces(index: int, row: Encoded) -> Iterator[Piece]:
    """As many answers together as take no more of the model than the prompt or `BUSY` tokens do: memory is bounded, and
    the prompt is at most doubled in cost. A pair stays whole, so that its numbers are those of training."""
    longest = max(map(len, row.completions))
    size = max(2, max(BUSY, len(row.prompt)) // longest)
    for first in range(0, len(row.completions), size):
        yield Piece(index, first, replace(row, completions=row.completions[first : first + size]))
