"""Preferences inside a conversation, whose assistant turns have `rejected` beside `content`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlx_dpo.data import row_fields
from mlx_dpo.data.conversations import split_pair
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import RowFormat
from mlx_dpo.data.messages import parse_messages
from mlx_dpo.errors import RowError

_KEY = "rejected"


class TurnPreferences(RowFormat):
    """A conversation with a rejected answer beside some of its assistant turns: a pair for each of them."""

    order = 105
    column_sets = tuple((column,) for column in columns.CONVERSATION_COLUMNS)

    def matches(self, row: Row) -> bool:
        """Whether a turn has a rejected answer, and the row none."""
        if columns.has_pair_column(row):
            return False
        turns = row[str(columns.conversation_column(row))]
        if not isinstance(turns, (list, tuple)):
            return False
        return any(isinstance(turn, dict) and turn.get(_KEY) is not None for turn in turns)

    def parse(self, row: Row) -> list[Pair]:
        """A pair for each such turn, whose prompt is the turns before it."""
        tools, template_kwargs = row_fields.parse_tools(row), row_fields.parse_template_kwargs(row)
        column = str(columns.conversation_column(row))
        turns = parse_messages([_without_rejected(turn) for turn in row[column]], column)
        pairs = []
        for i, turn in enumerate(row[column]):
            if not isinstance(turn, dict) or turn.get(_KEY) is None:
                continue
            name = f"{column}[{i}].{_KEY}"
            if turns[i]["role"] != "assistant" or not i:
                hint = "It belongs to an assistant turn, which is the chosen completion of the turns before it."
                raise RowError("is not an alternative to an assistant turn", kind="roles", field=name, hint=hint)
            for other in columns.alternatives((name, turn[_KEY])):
                texts = split_pair((column, turns[:i]), (f"{column}[{i}]", [turns[i]]), other)
                pairs.append(Pair(*columns.with_system(row, *texts), tools, template_kwargs))
        return pairs

    def label(self, row: Row) -> str:
        """The column."""
        return f"{columns.conversation_column(row)} with rejected turns"

    def columns_read(self, row: Row) -> Iterable[str]:
        """The conversation."""
        return [str(columns.conversation_column(row))]


def _without_rejected(turn: Any) -> Any:
    return {key: value for key, value in turn.items() if key != _KEY} if isinstance(turn, dict) else turn
