"""Examples as token ids, encoded when they are asked for, with a count of what that did to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mlx_dpo.data.chat_encoding import EncodedExample, ExampleEncoder
from mlx_dpo.data.row_formats import Example
from mlx_dpo.errors import RowError, Where

ENCODING_FLAGS = ("cut", "unclear", "dropped")
MAX_CHECKED_UP_FRONT = 5_000  # examples that are encoded before training, where none is to be left out


class ExampleSource(Protocol):
    """Examples by number, and the place each came from: a `PairFile`, or `PairList` for rows in memory."""

    name: str

    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...
    def location(self, index: int) -> Where: ...


class ExampleList:
    """Examples already in memory, all pairs or all single completions."""

    def __init__(self, examples: Sequence[Example], name: str, lines: Sequence[int]) -> None:
        """lines: which row each came from, counted from 1."""
        self.examples, self.name, self.lines = examples, name, lines

    @property
    def digest(self) -> str:
        """Of all of them."""
        digest = hashlib.blake2b(digest_size=16)
        for example in self.examples:
            digest.update(json.dumps(example.to_row(), sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def location(self, index: int) -> Where:
        return Where(self.name, self.lines[index])


class EncodedExamples:
    """The examples of a source under an encoder; the same index always gives the same ids.

    Attributes:
        marks: [examples, MARKS], what encoding did to those encoded so far.
    """

    def __init__(self, source: ExampleSource, encoder: ExampleEncoder, bad_rows: list[RowError] | None = None) -> None:
        """bad: takes the rows that the tokenizer or the template refuses; without it the first of them raises."""
        self.source, self.encoder, self.bad_rows = source, encoder, bad_rows
        self.flags = np.zeros((len(source), len(ENCODING_FLAGS)), np.bool_)

    def __len__(self) -> int:
        return len(self.source)

    def encode(self, index: int) -> EncodedExample | None:
        """The pair's token ids, or None where it is too long and such pairs are dropped. Raises `RowError`."""
        pair = self.encoder(self.source[index], self.source.location(index))
        self.flags[index] = (False, False, True) if pair is None else (pair.cut, not pair.prompt_is_prefix, False)
        return pair

    def __getitem__(self, index: int) -> EncodedExample:
        pair = self.encode(int(index))
        if pair is None:
            raise IndexError(f"pair {index} is dropped for its length")
        return pair

    def usable_indices(self, select: Callable[[range], Sequence[int]] = lambda all: all) -> np.ndarray:
        """Indices of the examples to train on. Raises `RowError`.

        What the template refuses is said before the model is loaded: all are encoded once, but of very many, where
        none is to be left out, the first.

        Args:
            share: of those to encode, the ones to encode here; of others it is not said that they can't be used.
        """
        if self.bad_rows is None and self.encoder.overlong == "truncate":
            for i in select(range(min(len(self), MAX_CHECKED_UP_FRONT))):
                self.encode(i)
            return np.arange(len(self))
        refused = [i for i in select(range(len(self))) if not self._is_usable(i)]
        return np.setdiff1d(np.arange(len(self)), refused)

    def _is_usable(self, index: int) -> bool:
        try:
            return self.encode(index) is not None
        except RowError as error:
            if self.bad_rows is None:
                raise
            self.bad_rows.append(error)
            return False

    @property
    def num_truncated(self) -> int:
        """How many of the pairs encoded so far lost tokens to the length limit."""
        return self._count("cut")

    @property
    def num_dropped(self) -> int:
        """How many of the pairs encoded so far are too long and are left out."""
        return self._count("dropped")

    @property
    def num_prefix_mismatches(self) -> int:
        """How many of the pairs encoded so far have a prompt that is no prefix of prompt and answer in the template."""
        return self._count("unclear")

    def _count(self, name: str) -> int:
        return int(self.flags[:, ENCODING_FLAGS.index(name)].sum())
