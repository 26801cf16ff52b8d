"""What formats of public data sets share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from mlx_dpo.data import row_fields
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import RowFormat
from mlx_dpo.data.formats.scored_completions import ScoredCompletions


class PublicDataset(RowFormat):
    """A public data set: recognised by its columns, parsed as completions with scores.

    Attributes:
        columns: the columns that it is recognised by.
        prompt_column: the column with the prompt.
    """

    columns: ClassVar[tuple[str, ...]]
    prompt_column: ClassVar[str] = "prompt"

    @abstractmethod
    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """The completions and their scores, higher is better. Raises `RowError`."""

    def matches(self, row: Row) -> bool:
        """Whether all the columns are there."""
        return row_fields.has_columns(row, *self.columns)

    def parse(self, row: Row) -> list[Pair]:
        """A pair for every two completions with different scores."""
        return ScoredCompletions().parse(self._canonical(row))

    def label(self, row: Row) -> str:
        """The label of completions with scores."""
        return ScoredCompletions().label({"scores": ()})

    def _canonical(self, row: Row) -> Row:
        completions, scores = self.scored(row)
        columns = ("system", "tools", "chat_template_kwargs")
        kept = {column: row[column] for column in columns if row_fields.has_columns(row, column)}
        return {**kept, "prompt": row[self.prompt_column], "completions": completions, "scores": scores}
