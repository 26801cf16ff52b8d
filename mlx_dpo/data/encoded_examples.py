"""Examples as token ids, encoded when they are first read, with counts of what encoding did to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlx_dpo.data.bounded_cache import BoundedCache
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.encoding_warnings import ENCODING_WARNINGS, encoding_warnings
from mlx_dpo.data.example_sources import ExampleSource
from mlx_dpo.errors import RowError

ENCODING_FLAGS = ("dropped", *ENCODING_WARNINGS)
MAX_CHECKED_UP_FRONT = 1_000  # examples that are encoded before training, if none may be skipped
MAX_CACHED_TOKENS = 1_000_000  # some 40 MB


class EncodedExamples:
    """The examples of a source under an encoder; the same index always gives the same ids.

    Attributes:
        flags: [examples, ENCODING_FLAGS] bool; what encoding did to those encoded so far.
    """

    def __init__(self, source: ExampleSource, encoder: ExampleEncoder, bad_rows: list[RowError] | None = None) -> None:
        """bad_rows: receives the errors of rows that can't be encoded; without it the first of them raises."""
        self.source, self.encoder, self.bad_rows = source, encoder, bad_rows
        self.flags = np.zeros((len(source), len(ENCODING_FLAGS)), np.bool_)
        self._cache: BoundedCache[int, EncodedExample] = BoundedCache(MAX_CACHED_TOKENS)

    def __len__(self) -> int:
        return len(self.source)

    def encode(self, index: int) -> EncodedExample | None:
        """An example's token ids, or None where it is dropped for its length. Raises `RowError`."""
        if cached := self._cache.get(index):
            return cached
        encoded = self.encoder(self.source[index], self.source.location(index))
        if encoded is None:
            self.flags[index] = [flag == "dropped" for flag in ENCODING_FLAGS]
            return None
        warnings = {kind.key for kind in encoding_warnings(encoded)}
        self.flags[index] = [flag in warnings for flag in ENCODING_FLAGS]
        self._cache.put(index, encoded, len(encoded.prompt) + sum(map(len, encoded.completions)))
        return encoded

    def __getitem__(self, index: int) -> EncodedExample:
        encoded = self.encode(int(index))
        if encoded is None:
            raise IndexError(f"example {index} is dropped for its length")
        return encoded

    def usable_indices(self, select: Callable[[range], Sequence[int]] = lambda indices: indices) -> np.ndarray:
        """Indices of the examples to train on, so that a row that can't be encoded is reported before training.

        Where examples may be left out, all are encoded; else at most `MAX_CHECKED_UP_FRONT`.

        Args:
            select: of the indices to check, those to check here; the others are taken as usable.

        Raises:
            RowError: an example can't be encoded, and there is no `bad_rows` to list it in.
        """
        if self.bad_rows is None and self.encoder.overlong == "truncate":
            for index in select(range(min(len(self), MAX_CHECKED_UP_FRONT))):
                self.encode(index)
            return np.arange(len(self))
        unusable = [index for index in select(range(len(self))) if not self._is_usable(index)]
        return np.setdiff1d(np.arange(len(self)), unusable)

    def _is_usable(self, index: int) -> bool:
        try:
            return self.encode(index) is not None
        except RowError as error:
            if self.bad_rows is None:
                raise
            self.bad_rows.append(error)
            return False

    def counts(self) -> dict[str, int]:
        """By flag of `ENCODING_FLAGS`, how many of the examples encoded so far have it, if any has."""
        counts = self.flags.sum(axis=0).tolist()
        return {flag: count for flag, count in zip(ENCODING_FLAGS, counts, strict=True) if count}
