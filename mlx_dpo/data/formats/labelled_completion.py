"""One completion of a prompt, with a label or without: {"prompt": "...", "completion": "...", "label": true}."""

from __future__ import annotations

from mlx_dpo.data import row_fields
from mlx_dpo.data.conversations import NamedValue
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import CompletionFormat


class LabelledCompletion(CompletionFormat):
    """A prompt and a completion, or a conversation that ends in the completion."""

    order = 150
    noun = "completion"

    def column(self, row: Row) -> str | None:
        """`completion`."""
        return "completion" if row_fields.has_columns(row, "completion") else None

    def prompt(self, row: Row) -> NamedValue | None:
        """The prompt. Raises `RowError` where a completion is a text without a prompt."""
        prompt = columns.prompt(row)
        if prompt is None and isinstance(row["completion"], str):
            raise columns.missing_column(row, "prompt")
        return prompt

    def label(self, row: Row) -> str:
        """The columns."""
        return f"prompt, {super().label(row)}"
