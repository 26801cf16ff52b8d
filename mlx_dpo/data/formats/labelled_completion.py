"""One completion of a prompt, with a label or without: {"prompt": "...", "completion": "...", "label": true}."""

from __future__ import annotations

from mlx_dpo.data import row_fields
from mlx_dpo.data.conversations import NamedValue
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.column_errors import missing_column
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import CompletionFormat

_ANSWER_COLUMNS = ("response", "output")  # of ms-swift's and Alpaca's rows; beside a prompt only


class LabelledCompletion(CompletionFormat):
    """A prompt and a completion, or a conversation that ends in the completion."""

    order = 150
    column_sets = (("completion",), *((column,) for column in _ANSWER_COLUMNS))
    noun = "completion"

    def column(self, row: Row) -> str | None:
        """`completion`, or what it is called beside a prompt."""
        if row_fields.has_columns(row, "completion"):
            return "completion"
        if columns.prompt_column(row) in (None, *columns.CONVERSATION_COLUMNS):
            return None
        return next((column for column in _ANSWER_COLUMNS if row_fields.has_columns(row, column)), None)

    def prompt(self, row: Row) -> NamedValue | None:
        """The prompt. Raises `RowError` if a completion is a text without a prompt."""
        prompt, column = columns.prompt(row), str(self.column(row))
        if prompt is None and isinstance(row[column], str):
            raise missing_column(row, "prompt")
        return prompt and columns.without_answer(prompt, (column, row[column]))

    def label(self, row: Row) -> str:
        """The columns."""
        return f"prompt, {super().label(row)}"
