"""Checks of values that come from JSON, and how to name and print them."""

from __future__ import annotations

import math
from typing import Any

from mlx_dpo.errors import RowError

_MAX_DEPTH = 64


def json_type_name(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return {str: "text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def printable(text: object, limit: int = 60) -> str:
    """Text from a row made fit for a terminal: shortened, with control characters and lone surrogates escaped."""
    short = str(text)
    short = short if len(short) <= limit else short[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short)


def check_text(text: str, field: str) -> None:
    """Raise `RowError` if a text can't be written as UTF-8, and so not be tokenized."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = f"\\u{ord(text[error.start]):04x}"
            raise RowError(
                f"holds half of a surrogate pair ({code} at character {error.start + 1}), which is not text",
                kind="broken text",
                field=field,
                hint="Text was probably cut inside an emoji when the file was made.",
            ) from None


def check_json(value: Any, field: str, depth: int = 0) -> None:
    """Check that a value passed to a chat template is plain JSON.

    Args:
        value: the value.
        field: its name, for the message.
        depth: levels above it.

    Raises:
        RowError: it is not, or is nested too deep.
    """
    if depth > _MAX_DEPTH:
        raise RowError(f"is nested more than {_MAX_DEPTH} levels deep", kind="nesting", field=field)
    if isinstance(value, str):
        check_text(value, field)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RowError(f"has a key that is {json_type_name(key)}, not text", kind="type", field=field)
            check_text(key, field)
            check_json(item, field, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_json(item, field, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"holds {value}, which is not a number JSON has", kind="type", field=field)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise RowError(f"holds {json_type_name(value)}, which JSON does not have", kind="type", field=field)
