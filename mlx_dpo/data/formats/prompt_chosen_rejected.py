"""A prompt and two completions: {"prompt": "...", "chosen": "...", "rejected": "..."}, as texts or as messages."""

from __future__ import annotations

from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import PairFormat


class PromptChosenRejected(PairFormat):
    """A prompt, and completions of it or whole conversations that begin with it."""

    order = 130

    def matches(self, row: Row) -> bool:
        """Whether there are a prompt and two sides."""
        return columns.has_pair(row) and columns.prompt_column(row) is not None

    def label(self, row: Row) -> str:
        """The columns, and whether all are texts."""
        prompt = columns.prompt_column(row)
        (_, chosen), (_, rejected) = columns.pair(row)
        texts = all(isinstance(value, str) for value in (row.get(prompt or ""), chosen, rejected))
        return f"{prompt}, chosen, rejected, {'text' if texts else 'messages'}"
