"""What the values of a command's options and arguments are, read from the signature of its function."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from typer.models import ParameterInfo

from mlx_dpo.config_fields import choice_error, range_error, type_error, unwrap_optional
from mlx_dpo.errors import UserError

_LABELS = {int: "INT", float: "FLOAT", Path: "PATH"}
_EXPECTED = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class OptionType:
    """The type of the values of an option or an argument.

    Attributes:
        kind: int, float, str, bool or Path.
        choices: the allowed values; empty if they can't be listed.
        low: smallest allowed number.
        high: largest allowed number.
    """

    kind: Any
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    @property
    def label(self) -> str:
        """What --help shows in the place of a value."""
        return "|".join(self.choices) or _LABELS.get(self.kind, "TEXT")

    def problem(self, name: str, value: str) -> UserError | None:
        """What is wrong with a value as it was typed; None if it is fine.

        Args:
            name: the option or argument, for the message.
            value: the value.
        """
        if self.choices:
            return None if value in self.choices else choice_error(name, value, self.choices)
        if self.kind not in _EXPECTED:
            return None
        try:
            number = self.kind(value)
        except ValueError:
            return type_error(name, _EXPECTED[self.kind], value)
        return range_error(name, number, self.low, self.high)


def option_types(command: Any) -> dict[str, OptionType]:
    """The types of a command's options and arguments, by parameter."""
    if command.callback is None:
        return {}
    parameters = inspect.signature(command.callback, eval_str=True).parameters.values()
    return {parameter.name: _option_type(parameter.annotation) for parameter in parameters}


def _option_type(annotation: Any) -> OptionType:
    kind, *metadata = typing.get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    info = next((item for item in metadata if isinstance(item, ParameterInfo)), None)
    kind, _ = unwrap_optional(kind)
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is Literal:
        return OptionType(str, typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return OptionType(str, tuple(str(member.value) for member in kind))
    return OptionType(kind, low=info.min if info else None, high=info.max if info else None)
