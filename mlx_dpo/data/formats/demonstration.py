"""One conversation that ends in the completion: {"messages": [...]}, or ShareGPT's {"conversations": [...]}."""

from __future__ import annotations

from mlx_dpo.data.examples import Completion
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import CompletionFormat


class Demonstration(CompletionFormat):
    """A conversation; its last turn is the completion."""

    order = 160
    column_sets = tuple((column,) for column in columns.CONVERSATION_COLUMNS)
    noun = "conversation"

    def column(self, row: Row) -> str | None:
        """`messages` or `conversations`."""
        return columns.conversation_column(row)

    def parse(self, row: Row) -> list[Completion]:
        """The one completion of a row; Capybara's turns, {"input": ..., "output": ...}, are two messages each."""
        column = str(self.column(row))
        turns = row[column]
        if (
            isinstance(turns, list)
            and turns
            and all(isinstance(t, dict) and {"input", "output"} <= t.keys() for t in turns)
        ):
            names = (("user", "input"), ("assistant", "output"))
            messages = [{"role": role, "content": turn[key]} for turn in turns for role, key in names]
            row = {**row, column: messages}
        return super().parse(row)
