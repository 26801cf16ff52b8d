"""What formats of public datasets share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from mlx_dpo.data import row_fields
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import RowFormat
from mlx_dpo.data.formats.scored_completions import ScoredCompletions


class PublicDataset(RowFormat):
    """A public dataset: recognized by its columns, parsed as completions with scores.

    Attributes:
        columns: the columns that it is recognized by.
        prompt_column: the column with the prompt.
    """

    columns: ClassVar[tuple[str, ...]]
    prompt_column: ClassVar[str] = "prompt"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "columns" in vars(cls):
            cls.column_sets = (cls.columns,)

    @abstractmethod
    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """The completions and their scores, higher is better. Raises `RowError`."""

    def matches(self, row: Row) -> bool:
        """Whether all the columns are there."""
        return row_fields.has_columns(row, *self.columns)

    def parse(self, row: Row) -> list[Pair]:
        """A pair for every two completions with different scores."""
        return parse_scored(row, self.prompt(row), *self.scored(row))

    def prompt(self, row: Row) -> Row:
        """The prompt as a row of the columns `prompt`, or `instruction` and `input`."""
        return {"prompt": row[self.prompt_column]}

    def label(self, row: Row) -> str:
        """The label of completions with scores."""
        return ScoredCompletions().label({"scores": ()})

    def columns_read(self, row: Row) -> Iterable[str]:
        """All: what such a set has beside the pair is known not to be trained on."""
        return row


def parse_scored(row: Row, prompt: Row, completions: list[Any], scores: list[float]) -> list[Pair]:
    """The pairs of completions with scores.

    Args:
        row: whose system prompt, tools and template arguments they have.
        prompt: columns with the prompt, such as `prompt`, or `instruction` and `input`.
        completions: texts or messages.
        scores: of each of them, higher is better.
    """
    kept = {column: row[column] for column in _KEPT if row_fields.has_columns(row, column)}
    return ScoredCompletions().parse({**kept, **prompt, "completions": completions, "scores": scores})


_KEPT = ("system", "system_prompt", "tools", "chat_template_kwargs", "enable_thinking")
