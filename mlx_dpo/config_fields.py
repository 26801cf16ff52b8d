"""Settings as dataclass fields: their description, and the check of a value against type and range."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from mlx_dpo.errors import UserError
from mlx_dpo.utils.formatting import did_you_mean


def setting(
    default: Any, group: str, help: str, *, low: float | None = None, high: float | None = None, free: bool = False
) -> Any:
    """Make a field of `TrainConfig`.

    Args:
        default: value of the setting if none is given.
        group: heading in --help that lists it.
        help: help text: its effect on the result.
        low: smallest allowed value.
        high: largest allowed value.
        free: whether it may differ when a run is resumed, because the results don't depend on it.
    """
    metadata = {"group": group, "help": help, "low": low, "high": high, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


def unwrap_optional(hint: Any) -> tuple[Any, bool]:
    """Return the type inside `X | None`, and whether None is allowed.

    Args:
        hint: a resolved type hint.
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [argument for argument in typing.get_args(hint) if argument is not type(None)]
        return inner[0], True
    return hint, False


def check_value(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Convert a value to a field's type, and check its range.

    Args:
        field: made by `setting`.
        hint: its resolved type.
        value: a value from a command line, a YAML file or Python.

    Raises:
        UserError: it is of another type or out of range.
    """
    kind, optional = unwrap_optional(hint)
    if value is None and optional:
        return None
    value = _convert(field.name, kind, value)
    low, high = field.metadata["low"], field.metadata["high"]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (error := range_error(field.name, value, low, high)):
        raise error
    return value


def range_error(name: str, value: float, low: float | None, high: float | None) -> UserError | None:
    """The error of a number that is not finite or not in a range, whose ends are allowed; None if it is fine."""
    in_range = (low is None or value >= low) and (high is None or value <= high)
    if in_range and value == value and value not in (float("inf"), float("-inf")):
        return None
    return UserError(f"{value} is out of range: {_describe_range(low, high)}", field=name)


def _describe_range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "it must be finite"
    return f"at least {low}" if high is None else f"from {low} to {high}"


def choice_error(name: str, value: str, choices: Sequence[str]) -> UserError:
    """The error of a value that is not one of the choices."""
    hint = did_you_mean(value, choices) or None
    return UserError(f"{value!r} is not one of {', '.join(choices)}", field=name, hint=hint)


def type_error(name: str, expected: str, value: Any) -> UserError:
    """The error of a value of another type."""
    return UserError(f"expected {expected}, not {value!r}", field=name)


def _convert(name: str, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise choice_error(name, str(value), choices)
        return value
    if typing.get_origin(kind) is list:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise type_error(name, "a list of names", value)
        return [part.strip() for item in items for part in item.split(",") if part.strip()]
    if typing.get_origin(kind) is dict:
        return _parse_object(name, value)
    if kind is float:
        try:  # YAML reads 1e-5 as a string
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise type_error(name, "a number", value) from None
    expected = {bool: "true or false", int: "a whole number", str: "a string"}[kind]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise type_error(name, expected, value)
    return value


def _parse_object(name: str, value: Any) -> dict[str, Any]:
    """A JSON object from its text or its values."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise type_error(name, "a JSON object", value) from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise type_error(name, "a JSON object", value)
    return dict(value)
