"""Two conversations or texts with a common start: {"chosen": [...], "rejected": [...]}."""

from __future__ import annotations

from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import PairFormat


class ImplicitPrompt(PairFormat):
    """No prompt column: the prompt is what both sides begin with."""

    order = 120

    def matches(self, row: Row) -> bool:
        """Whether there are two sides and no prompt."""
        return columns.has_pair(row) and columns.prompt_column(row) is None

    def label(self, row: Row) -> str:
        """Whether both sides are texts."""
        texts = all(isinstance(value, str) for _, value in columns.pair(row))
        return f"implicit prompt, {'text' if texts else 'messages'}"
