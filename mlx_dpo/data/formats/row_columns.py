"""Columns that several row formats share. Each `RowError` lacks a location; `parse_examples` adds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_dpo.data.conversations import NamedValue, PromptAndPair, TextOrMessages, as_messages
from mlx_dpo.data.examples import SCORE_COLUMNS
from mlx_dpo.data.json_values import check_text, json_type_name
from mlx_dpo.data.messages import SYSTEM_ROLES, Message, parse_messages
from mlx_dpo.data.row_fields import LABEL_COLUMNS, has_columns
from mlx_dpo.errors import RowError

Row = dict[str, Any]
ColumnSets = tuple[tuple[str, ...], ...]

PAIR_COLUMNS: ColumnSets = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_messages", "rejected_messages"),  # LLaMA-Factory's version 1
    ("preferred_output", "non_preferred_output"),  # OpenAI's
)
CONVERSATION_COLUMNS = ("conversations", "messages", "conversation")
_PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", *CONVERSATION_COLUMNS, "input")
_SYSTEM_COLUMNS = ("system", "system_prompt")
COMMON_COLUMNS = frozenset(  # columns that every format reads
    (
        *(*_SYSTEM_COLUMNS, *LABEL_COLUMNS, "tools", "chat_template_kwargs", "enable_thinking", "margin", "history"),
        *(column for columns in SCORE_COLUMNS for column in columns),
    )
)


def has_pair(row: Row) -> bool:
    """Whether there are a chosen and a rejected column."""
    return pair_columns(row) is not None


def has_pair_column(row: Row) -> bool:
    """Whether there is a chosen or a rejected column."""
    return any(row.get(column) is not None for columns in PAIR_COLUMNS for column in columns)


def pair_columns(row: Row) -> tuple[str, ...] | None:
    """The names of the chosen and the rejected column; None where a row has none."""
    for columns in PAIR_COLUMNS:
        if row.get(columns[0]) is not None and row.get(columns[1]) is not None:
            return columns
    return None


def pair(row: Row) -> tuple[NamedValue, NamedValue]:
    """The chosen and the rejected column of a row that has them."""
    columns = pair_columns(row)
    assert columns is not None, "the format matches"
    chosen, rejected = columns
    return (chosen, row[chosen]), (rejected, row[rejected])


def alternatives(side: NamedValue) -> list[NamedValue]:
    """The answers of a side: several if it is a list of texts, or of lists of messages; else the side itself."""
    name, value = side
    if not isinstance(value, (list, tuple)) or not value:
        return [side]
    is_list = all(isinstance(item, str) for item in value) or all(isinstance(item, (list, tuple)) for item in value)
    return [(f"{name}[{i}]", item) for i, item in enumerate(value)] if is_list else [side]


def prompt_column(row: Row) -> str | None:
    """The name of the column that holds the prompt."""
    for column in _PROMPT_COLUMNS:
        if row.get(column) is not None:
            return column
    return None


def conversation_column(row: Row) -> str | None:
    """The name of the first column with a conversation."""
    return next((column for column in CONVERSATION_COLUMNS if row.get(column) is not None), None)


def prompt(row: Row) -> NamedValue | None:
    """The prompt and its column: with the `input` of an instruction, a `history`, and OpenAI's `input.messages`."""
    column = prompt_column(row)
    if column is None:
        return None
    value = row[column]
    if column == "instruction" and isinstance(value, str) and has_columns(row, "input"):
        if not isinstance(row["input"], str):
            raise RowError(f"must be text, not {json_type_name(row['input'])}", kind="type", field="input")
        value = f"{value}\n{row['input']}" if row["input"] else value
    elif column == "input" and isinstance(value, dict) and "messages" in value:
        return "input.messages", value["messages"]
    if _is_column(value):
        raise whole_column_error(column)
    if isinstance(row.get("history"), (list, tuple)) and isinstance(value, str):
        return column, [*_history(row["history"]), {"role": "user", "content": value}] if row["history"] else value
    return column, value


def _is_column(value: Any) -> bool:
    """Whether a value is a column's values for several rows: a list of texts, or pandas' {"0": ..., "1": ...}."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(key, str) and key.isdigit() for key in value)
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], str)


def whole_column_error(column: str) -> RowError:
    """An error about a value that is a whole column."""
    hint = (
        "If the file is one object of columns, write one object per row: pandas' to_json(orient='records', "
        "lines=True), or to_json of datasets."
    )
    return RowError("holds several values, but a row has one", kind="columns", field=column, hint=hint)


def check_no_whole_column(*answers: NamedValue) -> None:
    """Raise `RowError` if a side of a pair without a prompt holds several texts."""
    for name, value in answers:
        if _is_column(value) and len(value) > 1:
            raise whole_column_error(name)


def _history(turns: Any) -> Iterator[Any]:
    """Earlier turns, which Alpaca's and ms-swift's rows have as [question, answer]."""
    for i, turn in enumerate(turns):
        if isinstance(turn, dict):
            yield turn
        elif isinstance(turn, (list, tuple)) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
            question, answer = turn
            if question:
                yield {"role": "user", "content": question}
            if answer:
                yield {"role": "assistant", "content": answer}
        else:
            hint = "Each earlier turn is [question, answer], or a message."
            raise RowError("must be a pair of strings", kind="history", field=f"history[{i}]", hint=hint)


def without_answer(prompt: NamedValue, *answers: NamedValue) -> NamedValue:
    """A prompt of messages without a last turn that repeats one of its answers.

    Raises:
        RowError: a conversation ends in another answer of the assistant. A column named `prompt` may: completions
            continue that turn.
    """
    name, value = prompt
    if not isinstance(value, (list, tuple)) or len(value) < 2 or not isinstance(value[-1], dict):
        return prompt
    if value[-1].get("role", value[-1].get("from")) not in ("assistant", "gpt", "model", "bot", "ai"):
        return prompt
    last = parse_messages(value[-1:], name)[0]
    if last.get("tool_calls"):
        return prompt
    content = last["content"].strip()
    if any(_last_content(side) == content for _, side in answers) or (name in CONVERSATION_COLUMNS and not content):
        return name, value[:-1]
    if name in CONVERSATION_COLUMNS:
        hint = "Leave that turn out; where the answers continue it, name the column `prompt`."
        message = "ends with a turn of the assistant that is neither answer"
        raise RowError(message, kind="roles", field=f"{name}[{len(value) - 1}]", hint=hint)
    return prompt


def _last_content(side: Any) -> str | None:
    """The text of an answer's last turn, if it has one."""
    last = side[-1] if isinstance(side, (list, tuple)) and side else side
    if isinstance(last, dict):
        last = last.get("content", last.get("value"))
    return last.strip() if isinstance(last, str) else None


def system_text(row: Row) -> str:
    """The system prompt beside the conversation, a text or one system message; empty without one. Raises `RowError`."""
    column = next((name for name in _SYSTEM_COLUMNS if row.get(name) is not None), None)
    if column is None:
        return ""
    value = row[column]
    if isinstance(value, (list, tuple, dict)):
        messages = parse_messages(value, column)
        if len(messages) != 1 or messages[0]["role"] not in SYSTEM_ROLES:
            raise RowError("must be text, or one system message", kind="type", field=column)
        return str(messages[0]["content"])
    if not isinstance(value, str):
        raise RowError(f"must be text, not {json_type_name(value)}", kind="type", field=column)
    check_text(value, column)
    return value


def with_system(row: Row, prompt: TextOrMessages, chosen: TextOrMessages, rejected: TextOrMessages) -> PromptAndPair:
    """Prepend the row's system prompt, if it has one; prompt and completions are then messages.

    A conversation that has a system turn keeps it.

    Args:
        row: the row.
        prompt: text or messages.
        chosen: text or messages.
        rejected: text or messages.

    Raises:
        RowError: the system prompt is neither a text nor one system message.
    """
    system = system_text(row)
    if not system:
        return prompt, chosen, rejected
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[0]["role"] not in SYSTEM_ROLES:
        messages = [{"role": "system", "content": system}, *messages]
    return messages, as_messages(chosen), as_messages(rejected)


def ignored_system(row: Row, prompt: TextOrMessages) -> bool:
    """Whether the row's system prompt differs from the system turn that its conversation has, which was kept."""
    if isinstance(prompt, str) or not any(row.get(name) is not None for name in _SYSTEM_COLUMNS):
        return False
    return bool(system_text(row)) and prompt[0]["content"].strip() != system_text(row).strip()
