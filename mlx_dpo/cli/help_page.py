"""The text of --help, in one layout for all commands and widths: no word is broken, and nothing is truncated."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from rich.text import Text

from mlx_dpo.cli.option_types import OptionType, option_types

MAX_WIDTH = 100  # columns; longer lines are hard to read
INDENT, TEXT_INDENT = "  ", "      "  # of the names of options, and of their descriptions
HEADING_STYLE, NAME_STYLE = "bold", "bold cyan"
OPTIONS_PANEL = "Options"  # of options that name no other
MAX_UNBROKEN = 30  # characters of a default that stands in one line
_UNBROKEN_SPACE = "\xa0"
_EXAMPLES = re.compile(r"^Examples?:$", re.MULTILINE)
_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s'"])+"""  # of a command; what is quoted stays together
_COMMAND_PART = re.compile(rf"-[\w-]+(?:\s+(?!-){_WORD})?|{_WORD}")  # an option stays with its value


def help_page(command: Any, context: Any, width: int, defaults: Mapping[str, str]) -> Text:
    """Lay out the help of a command or of a group of commands.

    Args:
        command: the command.
        context: its context, which knows the name that it was called by.
        width: columns of the terminal.
        defaults: defaults by parameter that are not those of the parameters themselves.
    """
    width = min(width, MAX_WIDTH)
    paragraphs, examples = split_help(command.help or "")
    types = option_types(command)
    parameters = [parameter for parameter in command.get_params(context) if not parameter.hidden]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    page = Text()
    page.append("Usage: ", HEADING_STYLE)
    usage = _usage(command, context, arguments, options, types)
    page.append(wrap_command(usage, width - len("Usage: "), indent="") + "\n")
    for paragraph in paragraphs:
        page.append("\n" + _fill(paragraph, width) + "\n")
    if examples:
        page.append("\nExamples:\n", HEADING_STYLE)
        page.append("\n".join(wrap_command(example, width) for example in examples) + "\n")
    if commands := getattr(command, "commands", None):
        _append_commands(page, commands, width)
    if arguments:
        page.append("\nArguments:\n", HEADING_STYLE)
    for argument in arguments:
        _append_parameter(page, _argument_name(argument), "", _description(argument, defaults), width)
    for panel, members in _panels(options):
        page.append(f"\n{panel}:\n", HEADING_STYLE)
        for option in members:
            names, label = ", ".join([*option.opts, *option.secondary_opts]), _value_label(option, types)
            _append_parameter(page, names, label, _description(option, defaults), width)
    return page


def split_help(text: str) -> tuple[list[str], list[str]]:
    """Split the docstring of a command into its paragraphs and the examples at its end.

    Under the line "Examples:", each line is a command; lines that are indented deeper continue it.
    """
    described, *rest = _EXAMPLES.split(inspect.cleandoc(text), maxsplit=1)
    examples: list[str] = []
    for line in textwrap.dedent("".join(rest)).splitlines():
        if line.startswith(" "):
            examples[-1] += " " + line.strip()
        elif line:
            examples.append(line)
    paragraphs = (" ".join(paragraph.split()) for paragraph in described.split("\n\n"))
    return [paragraph for paragraph in paragraphs if paragraph], examples


def wrap_command(command: str, width: int, indent: str = INDENT) -> str:
    r"""Break a command line between its options, with a \ where a line continues, so that it can be pasted."""
    lines = [""]
    for part in _COMMAND_PART.findall(command):
        if lines[-1] and len(lines[-1]) + len(part) + len(indent) + len(" ") + len(" \\") > width:
            lines.append(indent + part)
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(indent + line for line in lines)


def _usage(
    command: Any, context: Any, arguments: Sequence[Any], options: Sequence[Any], types: Mapping[str, OptionType]
) -> str:
    required = [f"{max(option.opts, key=len)} {_value_label(option, types)}" for option in options if option.required]
    pieces = [context.command_path, *required, "[OPTIONS]"]
    if getattr(command, "commands", None):
        pieces.append("COMMAND ...")
    for argument in arguments:
        name = _argument_name(argument)
        pieces.append(name if argument.required else f"[{name.strip('[]')}]")
    return " ".join(pieces)


def _argument_name(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper()).strip("[]")
    return f"{name}..." if argument.nargs == -1 else name


def _append_commands(page: Text, commands: Mapping[str, Any], width: int) -> None:
    page.append("\nCommands:\n", HEADING_STYLE)
    column = max(map(len, commands)) + len(INDENT)
    for name, command in commands.items():
        paragraphs, _ = split_help(command.help or "")
        text = _fill("".join(paragraphs[:1]), width, indent=" " * (len(INDENT) + column)).lstrip()
        page.append(f"{INDENT}{name:{column}}", NAME_STYLE).append(text + "\n")


def _append_parameter(page: Text, names: str, label: str, description: str, width: int) -> None:
    page.append(_fill(names, width, indent=INDENT), NAME_STYLE)
    if len(f"{INDENT}{names} {label}") <= width:
        page.append(f" {label}\n" if label else "\n")
    else:  # choices, in a narrow terminal
        page.append("\n" + _fill(label.replace("|", "| "), width, indent=TEXT_INDENT).replace("| ", "|") + "\n")
    if description:
        page.append(_fill(description, width, indent=TEXT_INDENT) + "\n")


def _value_label(option: Any, types: Mapping[str, OptionType]) -> str:
    if option.is_flag:
        return ""
    option_type = types.get(option.name)
    return str(option.metavar or (option_type.label if option_type else "TEXT"))


def _description(parameter: Any, defaults: Mapping[str, str]) -> str:
    default = defaults.get(parameter.name) or _default_text(parameter)
    notes = "(required)" if parameter.required else f"[default: {default}]" if default else ""
    if len(notes) < MAX_UNBROKEN:
        notes = notes.replace(" ", _UNBROKEN_SPACE)
    return " ".join(filter(None, [parameter.help, notes]))


def _default_text(parameter: Any) -> str:
    value = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    return "" if not parameter.show_default or value in (None, "", False) or callable(value) else str(value)


def _panels(options: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Options by their heading; those without one come first, unless they are --help alone."""
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(getattr(option, "rich_help_panel", None) or OPTIONS_PANEL, []).append(option)
    own = panels.pop(OPTIONS_PANEL, [])
    is_help_alone = [option.name for option in own] == ["help"]
    rest = list(panels.items())
    yield from [*rest, (OPTIONS_PANEL, own)] if is_help_alone else [(OPTIONS_PANEL, own), *rest]


def _fill(text: str, width: int, indent: str = "") -> str:
    filled = textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_UNBROKEN_SPACE, " ")
