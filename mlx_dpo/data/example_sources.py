"""Examples by number: of any source, and of rows in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

from mlx_dpo.data.data_warnings import DataWarnings
from mlx_dpo.data.examples import Example
from mlx_dpo.errors import Where


class ExampleSource(Protocol):
    """Examples by number and the locations of their rows: an `ExampleFile`, or an `ExampleList` of rows in memory."""

    name: str

    @property
    def warnings(self) -> DataWarnings:
        """Warnings about the rows."""

    @property
    def digest(self) -> str:
        """A digest of all rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Example: ...

    def location(self, index: int) -> Where:
        """The location of an example's row."""


class ExampleList:
    """Examples in memory, all pairs or all single completions.

    Args:
        examples: the examples.
        name: what errors call the list.
        lines: the number of each example's row, from 1.
    """

    def __init__(self, examples: Sequence[Example], name: str, lines: Sequence[int]) -> None:
        self.examples, self.name, self.lines = examples, name, lines

    @property
    def warnings(self) -> DataWarnings:
        """Warnings about the rows."""
        warnings = DataWarnings()
        for i, example in enumerate(self.examples):
            warnings.add_examples([example], self.location(i))
        return warnings

    @property
    def digest(self) -> str:
        """A digest of all examples."""
        digest = hashlib.blake2b(digest_size=16)
        for example in self.examples:
            digest.update(json.dumps(example.to_row(), sort_keys=True).encode() + b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def location(self, index: int) -> Where:
        """The location of an example's row."""
        return Where(self.name, self.lines[index])
