"""A whole exchange and another answer to it, as ms-swift has them: {"messages": [...], "rejected_response": "..."}."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_dpo.data import row_fields
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.prompt_chosen_rejected import PromptChosenRejected
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import RowFormat, prompt_columns_read
from mlx_dpo.data.messages import parse_messages
from mlx_dpo.errors import RowError

_REJECTED_COLUMNS = ("rejected_response", "rejected_messages", "rejected")
_ANSWER_COLUMNS = ("response", "completion", "output")


class RejectedBeside(RowFormat):
    """A conversation whose last turn is the chosen answer, or a prompt and its answer, beside the rejected one."""

    order = 125
    column_sets = tuple(
        (rejected, column)
        for rejected in _REJECTED_COLUMNS
        for column in (*columns.CONVERSATION_COLUMNS, *_ANSWER_COLUMNS)
    )

    def matches(self, row: Row) -> bool:
        """Whether there is a rejected column without a chosen one, beside what ends in the chosen answer."""
        if any(row.get(chosen) is not None for chosen, _ in columns.PAIR_COLUMNS):
            return False
        return columns.conversation_column(row) is not None or (
            columns.prompt_column(row) is not None and _answer_column(row) is not None
        )

    def parse(self, row: Row) -> list[Pair]:
        """A pair for each rejected answer."""
        rejected, answer = _rejected_column(row), _answer_column(row)
        rest = {key: value for key, value in row.items() if key not in (rejected, answer)}
        if answer is not None and columns.prompt_column(row) not in columns.CONVERSATION_COLUMNS:
            return PromptChosenRejected().parse({**rest, "chosen": row[answer], "rejected": row[rejected]})
        column = str(columns.conversation_column(row))
        turns = parse_messages(row[column], column)
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            hint = f"Its last turn is the chosen answer, beside `{rejected}`."
            raise RowError("must end with a turn of the assistant", kind="roles", field=column, hint=hint)
        del rest[column]
        answers = {"chosen": turns, "rejected": row[rejected]}
        if not _is_conversation(row[rejected]):
            rest["prompt"], answers["chosen"] = turns[:-1], turns[-1:]
        return PromptChosenRejected().parse({**rest, **answers})

    def label(self, row: Row) -> str:
        """The columns."""
        rejected, answer = _rejected_column(row), _answer_column(row)
        return f"{columns.conversation_column(row) or f'{columns.prompt_column(row)}, {answer}'}, {rejected}"

    def columns_read(self, row: Row) -> Iterable[str]:
        """The conversation or the prompt and its answer, and the rejected answer."""
        names = (_rejected_column(row), columns.conversation_column(row), _answer_column(row))
        return [*filter(None, names), *prompt_columns_read(columns.prompt_column(row))]


def _rejected_column(row: Row) -> str:
    return next(column for column in _REJECTED_COLUMNS if row_fields.has_columns(row, column))


def _answer_column(row: Row) -> str | None:
    return next((column for column in _ANSWER_COLUMNS if row_fields.has_columns(row, column)), None)


def _is_conversation(value: object) -> bool:
    """Whether messages begin with another turn than one of the assistant."""
    if not isinstance(value, (list, tuple)) or not value or not isinstance(value[0], dict):
        return False
    return parse_messages(value[:1], "rejected")[0]["role"] != "assistant"
