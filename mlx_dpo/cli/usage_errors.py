"""Mistakes in a command line as `UserError`s: what typer reports, in the style of all other errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from mlx_dpo.cli.option_types import option_types
from mlx_dpo.errors import UserError
from mlx_dpo.utils.formatting import did_you_mean

# click's exceptions; typer brings its own copy of click, or depends on it, by its version.
click_errors: Any = sys.modules[typer.BadParameter.__module__]


def usage_error(error: Any, command: Any, context: Any, values: Mapping[str, Any]) -> UserError:
    """Translate an error of parsing a command line.

    Args:
        error: an exception of click.
        command: the command that was called.
        context: its context.
        values: what was typed, by parameter.
    """
    help_hint = f"`{context.command_path} --help` describes it."
    if isinstance(error, click_errors.NoSuchOption):
        options = [name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)]
        return no_such(error.option_name, "option", options, context.command_path)
    if isinstance(error, click_errors.MissingParameter) and error.param:
        return UserError("required, but not given", field=display_name(error.param), hint=help_hint)
    if isinstance(error, click_errors.BadParameter) and error.param:
        problem = _value_error(error.param, command, values.get(error.param.name))
        return problem or UserError(_sentence(error.message), field=display_name(error.param), hint=help_hint)
    if isinstance(error, click_errors.BadOptionUsage):
        message = re.sub(r"^Option '\S+' ", "", error.message)
        return UserError(_sentence(message), field=error.option_name, hint=help_hint)
    hint = f"`{context.command_path} --help` describes the command."
    if extra := re.search(r"unexpected extra argument\S* \((.*)\)", error.message):
        return UserError(f"`{context.command_path}` takes no such argument", field=extra[1], hint=hint)
    return UserError(_sentence(error.message), hint=hint)


def no_such(name: str, kind: str, known: Sequence[str], command_path: str) -> UserError:
    """The error of an option or a command that does not exist.

    Args:
        name: as it was typed.
        kind: option or command.
        known: those that exist.
        command_path: the command that it was given to.
    """
    suggestion = did_you_mean(name.partition("=")[0], [item for item in known if len(item) > 2])
    hint = f"{suggestion} `{command_path} --help` lists them.".lstrip()
    return UserError(f"`{command_path}` has no such {kind}", field=name, hint=hint)


def display_name(parameter: Any) -> str:
    """How an option or an argument is called in messages: --beta, FILE."""
    if parameter.param_type_name == "option":
        return str(max(parameter.opts, key=len))
    return str(parameter.metavar or parameter.name.upper()).strip("[]")


def _value_error(parameter: Any, command: Any, value: Any) -> UserError | None:
    """What is wrong with a value, or with the first bad one of several."""
    option_type = option_types(command).get(parameter.name)
    if option_type is None:
        return None
    values = value if isinstance(value, (list, tuple)) else [value]
    problems = (option_type.problem(display_name(parameter), item) for item in values if isinstance(item, str))
    return next(filter(None, problems), None)


def _sentence(message: str) -> str:
    """A message in the style of a `UserError`: it begins in lower case, and ends without a full stop."""
    message = " ".join(message.split()).rstrip(".")
    return message[:1].lower() + message[1:]
