"""Command-line options: those made from the fields of `TrainConfig`, and types of options that commands share."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from mlx_dpo.cli.option_values import SETTING_VALUES, complete_model
from mlx_dpo.config import COLUMN_SETTINGS, TrainConfig
from mlx_dpo.config_fields import unwrap_optional

Command = Callable[..., None]
RENDERING_SETTINGS = ("raw", "chat_template_kwargs")  # how a prompt becomes token ids
ENCODING_SETTINGS = (*RENDERING_SETTINGS, "train_on", *COLUMN_SETTINGS)  # how a row does
EMPTY: Mapping[str, Any] = MappingProxyType({})


def model_option(help: str) -> Any:
    """An option that takes a model: the shell completes those on this machine."""
    return typer.Option(metavar="MODEL", autocompletion=complete_model, help=help)


JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AdapterModel = Annotated[str | None, model_option("Model folder or Hub id. Default: the adapter's model.")]
AdapterPath = Annotated[Path, typer.Option(help="Adapter folder.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("-c", "--config", help="YAML file of settings. Flags override it.", rich_help_panel="Run"),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[
    float, typer.Option(min=0, max=1, help="Sample from the most likely tokens of this total probability.")
]
MinP = Annotated[
    float,
    typer.Option(min=0, max=1, help="Sample from tokens with at least this share of the top token's probability."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sampling.")]
Supervise = Annotated[
    bool,
    typer.Option(
        "--supervise/--no-supervise",
        help="Train in a child process, and restart it from its last checkpoint if it crashes.",
        rich_help_panel="Run",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings only.", rich_help_panel="Run")]


def with_config_options(
    names: Iterable[str] | None = None,
    *,
    helps: Mapping[str, str] = EMPTY,
    defaults: Mapping[str, object] = EMPTY,
) -> Callable[[Command], Command]:
    """Decorate a command to add an option for each setting of `TrainConfig`.

    The command receives the options that the user gave as `flags`, a mapping from names to values.

    Args:
        names: the settings; by default all.
        helps: help texts that replace those of `TrainConfig`.
        defaults: values to show in the help as the default, if the command's differs from that of `TrainConfig`.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    hints = typing.get_type_hints(TrainConfig)
    options = []
    for name in names or fields:
        help = helps.get(name, fields[name].metadata["help"])
        default = defaults.get(name, fields[name].default)
        options.append(_parameter(fields[name], hints[name], help + _default_text(default)))

    def decorate(command: Command) -> Command:
        def wrapper(**arguments: Any) -> None:
            flags = {option.name: arguments.pop(option.name) for option in options}
            command(flags={name: value for name, value in flags.items() if value is not None}, **arguments)

        signature = inspect.signature(command, eval_str=True)
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != "flags"]
        parameters = [*options, *own]
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def check_adapter_flags(config: TrainConfig, flags: Mapping[str, Any]) -> None:
    """Refuse flags that contradict --init-adapter, those with the default's value too, which a config can't tell.

    Raises:
        UserError: a flag would have no effect.
    """
    if (
        config.init_adapter or config.fine_tune_type == "full"
    ):  # or reading an adapter's file would load mlx for nothing
        from mlx_dpo.adapters.adapter_settings import require_settings_of_adapter

        require_settings_of_adapter(config, {name: getattr(config, name) for name in flags})


def _parameter(field: dataclasses.Field[Any], hint: Any, help: str) -> inspect.Parameter:
    kind, _ = unwrap_optional(hint)
    if typing.get_origin(kind) is list:
        kind = str  # a,b,c
    if typing.get_origin(kind) is dict:
        kind = str  # JSON
    flag = "--" + field.name.replace("_", "-")
    metavar, completion = SETTING_VALUES.get(field.name, (None, None))
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=help,
        metavar=metavar,
        autocompletion=completion,
        show_default=False,  # the default is None, for options that were not given
        rich_help_panel=field.metadata["group"],
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _default_text(default: object) -> str:
    return "" if default in (None, "", False) else f" [default: {default}]"
