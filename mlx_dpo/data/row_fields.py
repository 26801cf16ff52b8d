"""Fields of a row beside its texts: label, margin, scores, tools, template arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from mlx_dpo.data.examples import SCORE_COLUMNS
from mlx_dpo.data.json_values import check_json, json_type_name, printable
from mlx_dpo.data.template_kwargs import RESERVED_TEMPLATE_KWARGS, parse_enable_thinking
from mlx_dpo.errors import RowError

LABEL_COLUMNS = ("label", "kto_tag")
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def parse_label(row: dict[str, Any]) -> bool | None:
    """The label of a single completion; None without one. Raises `RowError`."""
    column = next((name for name in LABEL_COLUMNS if row.get(name) is not None), None)
    if column is None:
        return None
    label = row[column]
    known = None
    if isinstance(label, (bool, int, float)) and label in (0, 1):
        known = bool(label)
    elif isinstance(label, str):
        known = _LABELS.get(label.strip().lower())
    if known is not None:
        return known
    hint = "true: an answer as it should be; false: one as it should not."
    shown = printable(json.dumps(label), 30)
    raise RowError(f"must be true or false, not {shown}", kind="label", field=column, hint=hint)


def has_columns(row: Mapping[str, Any], *keys: str) -> bool:
    """Whether all of these columns are there and not null."""
    for key in keys:  # noqa: SIM110 - faster than all() of a generator, and this runs some thirty times a row
        if row.get(key) is None:
            return False
    return True


def parse_margin(row: dict[str, Any]) -> float | None:
    """The `margin` of a row; None without one. Raises `RowError`."""
    return None if row.get("margin") is None else parse_number(row["margin"], "margin")


def parse_score_columns(row: dict[str, Any]) -> tuple[float, float] | None:
    """The scores of chosen and rejected; None without them. Raises `RowError`."""
    columns = next((names for names in SCORE_COLUMNS if has_columns(row, *names)), None)
    if columns is None:
        return None
    chosen, rejected = (parse_number(row[column], column) for column in columns)
    return chosen, rejected


def parse_numbers(values: Any, name: str) -> list[float]:
    """A list of finite numbers, called `name` in messages. Raises `RowError`."""
    if not isinstance(values, (list, tuple)):
        raise RowError(f"must be a list of numbers, not {json_type_name(values)}", kind="type", field=name)
    return [parse_number(value, f"{name}[{i}]") for i, value in enumerate(values)]


def parse_number(value: Any, name: str) -> float:
    """A finite number or the text of one, called `name` in messages. Raises `RowError`."""
    if isinstance(value, str):
        value = _number_of_text(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(f"must be a number, not {json_type_name(value)}", kind="type", field=name)
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"is {value}, which can't be compared", kind="not finite", field=name)
    return value


def _number_of_text(text: str) -> float | str:
    """The number that a text, such as a cell of a table, represents; the text itself if it is not a number."""
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        return text


def parse_tools(row: dict[str, Any]) -> list[Any] | None:
    """The tools of a row, a list or a JSON text of one; None without them. Raises `RowError`."""
    tools = row.get("tools")
    if tools is None:
        tools = row["input"].get("tools") if isinstance(row.get("input"), dict) else None
    if tools is None:
        return None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "[]")
        except (ValueError, RecursionError):
            raise RowError("is text that holds no JSON list", kind="tools", field="tools") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("must be a list of objects, or a JSON text of one", kind="tools", field="tools")
    check_json(tools, "tools")
    return tools or None


def parse_template_kwargs(row: dict[str, Any]) -> dict[str, Any]:
    """The `chat_template_kwargs` of a row, without nulls, and its `enable_thinking`. Raises `RowError`."""
    name = "chat_template_kwargs"
    kwargs, thinking = row.get(name), parse_enable_thinking(row)
    if kwargs is None:
        return thinking
    if isinstance(kwargs, str):
        kwargs = _parse_json_object(kwargs, name)
    if not isinstance(kwargs, dict):
        raise RowError(f"must be an object, not {json_type_name(kwargs)}", kind="type", field=name)
    check_json(kwargs, name)
    if reserved := RESERVED_TEMPLATE_KWARGS & kwargs.keys():
        raise RowError(f"can't set {', '.join(sorted(reserved))}", kind=name, field=name)
    return thinking | {key: value for key, value in kwargs.items() if value is not None}


def _parse_json_object(text: str, name: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise RowError("is text that holds no JSON object", kind="type", field=name) from None


def parse_values(row: dict[str, Any], column: str, key: str) -> list[Any]:
    """The values under a key of every object in a list."""
    items = row[column]
    if not isinstance(items, list):
        raise RowError(f"must be a list, not {json_type_name(items)}", kind="type", field=column)
    for i, item in enumerate(items):
        if not isinstance(item, dict) or item.get(key) is None:
            raise RowError("is missing", kind="missing key", field=f"{column}[{i}].{key}")
    return [item[key] for item in items]


def parse_integer(row: dict[str, Any], column: str, allowed: range) -> int:
    """Return an integer, which may be written as text or as a float.

    Args:
        row: the row.
        column: the integer's column.
        allowed: its valid values.

    Raises:
        RowError: the value is not one of them.
    """
    value = row[column]
    number = _number_of_text(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number not in allowed:
        shown = value if isinstance(value, (int, float)) else json_type_name(value)
        raise RowError(f"must be one of {tuple(allowed)}, not {shown}", kind="type", field=column)
    return int(number)
