"""Columns whose values were written as text: JSON, or Python's `repr`, of messages or of a list."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from mlx_dpo.errors import RowError

_LIST_COLUMNS = frozenset(  # in these a text is never meant as one
    (
        *("completions", "scores", "rankings", "generations", "ratings", "history", "options", "answers"),
        *("messages", "conversations", "conversation", "chosen_messages", "rejected_messages"),
    )
)
_ROLE = r"""["'](?:role|from)["']\s*:\s*["'](?:user|assistant|system|tool|developer|human|gpt)["']"""
_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
_NAMES_ROLE = re.compile(_ROLE)
_OPENING = frozenset("[{ \n\t\r")
_MAX_REPR = 1_000_000  # characters; Python's parser takes some 100 times as many bytes


def decode_text_values(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose texts of messages and of lists are parsed; the row itself if there are none. Raises `RowError`."""
    decoded = {}
    for column, value in row.items():
        if isinstance(value, str) and value[:1] in _OPENING:
            if column in _LIST_COLUMNS:
                decoded[column] = _parse_list(value)
            elif _MESSAGES.match(value) and _NAMES_ROLE.search(value):
                decoded[column] = _parse_messages_text(column, value)
    return {**row, **decoded} if decoded else row


def _parse_list(text: str) -> Any:
    value = _parse(text)
    return text if value is None else value


def _parse_messages_text(column: str, text: str) -> Any:
    """Messages, or the text if it is data that only looks like them."""
    value = _parse(text)
    if value is not None:
        messages = value if isinstance(value, list) else [value]
        return value if messages and all(map(_is_message, messages)) else text
    if not text.lstrip().startswith("["):
        return text
    hint = "Write the column as a JSON list; from pandas, with to_json(orient='records', lines=True)."
    message = "is text that begins like a list of messages, and is neither JSON nor Python"
    raise RowError(message, kind="messages as text", field=column, hint=hint)


def _parse(text: str) -> Any:
    """A list or an object from its JSON or its `repr`; None where it is neither."""
    try:
        value = json.loads(text)
    except RecursionError:
        return None
    except ValueError:
        if len(text) > _MAX_REPR:
            return None
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, (list, dict)) else None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    speaker = value.get("role", value.get("from"))
    return isinstance(speaker, str) and any(key in value for key in ("content", "value", "tool_calls"))
