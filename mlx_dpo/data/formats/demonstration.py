"""One conversation that ends in the completion: {"messages": [...]}, or ShareGPT's {"conversations": [...]}."""

from __future__ import annotations

from mlx_dpo.data import row_fields
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import CompletionFormat


class Demonstration(CompletionFormat):
    """A conversation; its last turn is the completion."""

    order = 160
    noun = "conversation"

    def column(self, row: Row) -> str | None:
        """`messages` or `conversations`."""
        return next((column for column in ("messages", "conversations") if row_fields.has_columns(row, column)), None)
