"""Command-line options made from the fields of `TrainConfig`, so that a knob is described once."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from mlx_dpo.config import TrainConfig
from mlx_dpo.config_fields import unwrap_optional


def with_config_options(
    names: Iterable[str] | None = None, **helps: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each knob (of `names`, or all). It gets those that were typed as `flags`.

    `helps` replaces a knob's help, default included, where it means something else to the command.
    """
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    hints = typing.get_type_hints(TrainConfig)
    options = [_parameter(fields[name], hints[name], helps.get(name)) for name in (names or fields)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**given: Any) -> None:
            flags = {o.name: given.pop(o.name) for o in options}
            command(flags={k: v for k, v in flags.items() if v is not None}, **given)

        own = [p.replace(kind=p.KEYWORD_ONLY) for p in _parameters(command) if p.name != "flags"]
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        parameters = [*options, *own]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    return list(inspect.signature(command, eval_str=True).parameters.values())


def _parameter(field: dataclasses.Field[Any], hint: Any, help: str | None) -> inspect.Parameter:
    kind, _ = unwrap_optional(hint)
    if typing.get_origin(kind) is list:
        kind = str  # a,b,c
    option = typer.Option(
        _flag(field.name, kind),
        help=help or field.metadata["help"] + _default_of(field),
        show_default=False,  # None, which stands for "not typed"
        rich_help_panel=field.metadata["group"],
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _default_of(field: dataclasses.Field[Any]) -> str:
    if field.default in (None, "", False):
        return ""
    return f" [dim]\\[default: {field.default}][/]"


def _flag(name: str, kind: Any) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag}/--no-{flag[2:]}" if kind is bool else flag
