"""Columns that several row formats share. Each `RowError` lacks a location; `parse_examples` adds it."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.conversations import NamedValue, PromptAndPair, TextOrMessages, as_messages
from mlx_dpo.data.json_values import check_text, json_type_name, printable
from mlx_dpo.data.row_fields import has_columns
from mlx_dpo.errors import RowError
from mlx_dpo.utils.formatting import closest

Row = dict[str, Any]

_PAIR_COLUMNS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred_output", "non_preferred_output"),  # OpenAI's
)
_PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "conversations", "messages", "input")
_EXPECTED_COLUMNS = (
    *("prompt", "chosen", "rejected", "completions", "scores", "rankings"),
    *("conversations", "messages", "completion", "label"),
)
_EXPECTED = "prompt, chosen and rejected; or chosen and rejected conversations; or prompt, completions and scores"


def has_pair(row: Row) -> bool:
    """Whether there are a chosen and a rejected column."""
    return any(has_columns(row, *columns) for columns in _PAIR_COLUMNS)


def has_pair_column(row: Row) -> bool:
    """Whether there is a chosen or a rejected column."""
    return any(has_columns(row, column) for columns in _PAIR_COLUMNS for column in columns)


def pair(row: Row) -> tuple[NamedValue, NamedValue]:
    """The chosen and the rejected column of a row that has them."""
    chosen, rejected = next(columns for columns in _PAIR_COLUMNS if has_columns(row, *columns))
    return (chosen, row[chosen]), (rejected, row[rejected])


def prompt_column(row: Row) -> str | None:
    """The name of the column that holds the prompt."""
    return next((column for column in _PROMPT_COLUMNS if has_columns(row, column)), None)


def prompt(row: Row) -> NamedValue | None:
    """The prompt and its column: an instruction together with its input, and OpenAI's `input.messages`."""
    column = prompt_column(row)
    if column is None:
        return None
    value = row[column]
    if column == "instruction" and isinstance(value, str) and has_columns(row, "input"):
        if not isinstance(row["input"], str):
            raise RowError(f"must be text, not {json_type_name(row['input'])}", kind="type", field="input")
        return column, f"{value}\n{row['input']}" if row["input"] else value
    if column == "input" and isinstance(value, dict) and "messages" in value:
        return "input.messages", value["messages"]
    return column, value


def with_system(row: Row, prompt: TextOrMessages, chosen: TextOrMessages, rejected: TextOrMessages) -> PromptAndPair:
    """Prompt and completions; all as messages after the text of `system`, where the row has one. Raises `RowError`."""
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise RowError(f"must be text, not {json_type_name(system)}", kind="type", field="system")
    if not system:
        return prompt, chosen, rejected
    check_text(system, "system")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages, as_messages(chosen), as_messages(rejected)


def no_format_error(row: Row) -> RowError:
    """Why a row is in no format."""
    for present, missing in (("rejected", "chosen"), ("chosen", "rejected")):
        if has_columns(row, present):
            return missing_column(row, missing)
    error = missing_column(row, "chosen")
    error.kind, error.field, error.message = "unknown shape", None, "no preference pair in this row's keys"
    return error


def missing_column(row: Row, column: str) -> RowError:
    """An error about a column that is absent or null, with the columns there are and a likely typo."""
    if column in row:
        return RowError("is null", kind="missing key", field=column)
    names = [str(name) for name in row]
    listed = ", ".join(printable(name, 30) for name in names[:12]) + (", ..." if len(names) > 12 else "")
    hint = f"{_typo(names)}Keys here: {listed or 'none'}. Expected: {_EXPECTED}."
    return RowError("is missing", kind="missing key", field=column, hint=hint)


def _typo(names: list[str]) -> str:
    for name in names[:100]:
        if name not in _EXPECTED_COLUMNS and (near := closest(name.lower()[:40], _EXPECTED_COLUMNS, cutoff=0.75)):
            return f"Did you mean `{near}` by `{printable(name, 40)}`? "
    return ""
