"""The help of every command, at several widths: nothing broken, nothing truncated, and examples that work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command

from mlx_dpo.cli.app import app
from mlx_dpo.cli.help_page import help_page, split_help, wrap_command
from mlx_dpo.cli.option_types import option_types

ROOT = get_command(app)


def commands(command: Any, path: str = "mlx-dpo") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from commands(subcommand, f"{path} {name}")


COMMANDS = dict(commands(ROOT))


def page(name: str, width: int) -> str:
    context = typer.Context(COMMANDS[name], info_name=name)
    return help_page(COMMANDS[name], context, width, {}).plain


def parse(line: str) -> Any:
    """Parse the call of mlx-dpo in a shell's line, without running it."""
    words = shlex.split(line)
    words = words[words.index("mlx-dpo") + 1 :]
    end = next((i for i, word in enumerate(words) if word in (">", "|", "&&")), len(words))
    words, command = words[:end], ROOT
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command.make_context("mlx-dpo", words)


def test_all_commands_are_there() -> None:
    assert {"mlx-dpo", "mlx-dpo train", "mlx-dpo models", "mlx-dpo data", "mlx-dpo data fix"} <= set(COMMANDS)
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_nothing_is_broken_or_truncated(name: str, width: int) -> None:
    text, command = page(name, width), COMMANDS[name]
    if width >= 80:
        assert [line for line in text.splitlines() if len(line) > width] == []
    else:  # only what has no place to break at is longer
        long = [line for line in text.splitlines() if len(line) > width]
        assert all(len(line.split()) <= 3 or "Usage" in line for line in long), long
    assert "…" not in text
    joined = " ".join(text.split())
    for parameter in command.get_params(typer.Context(command)):
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert not option.startswith("-") or re.search(rf"{re.escape(option)}(?![\w-])", text), option
        assert " ".join((parameter.help or "").split()) in joined
    for option_type in option_types(command).values():
        assert option_type.label == "TEXT" or not option_type.choices or option_type.label in joined.replace("| ", "|")
    for paragraph in split_help(command.help)[0]:
        assert paragraph in joined


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_work(name: str) -> None:
    _, examples = split_help(COMMANDS[name].help)
    assert examples
    for example in examples:
        assert name in example or name == "mlx-dpo"
        for width in (40, 80, 120):
            wrapped = wrap_command(example, width)
            assert shlex.split(wrapped.replace("\\\n", "")) == shlex.split(example)
        if not example.endswith("--help"):
            parse(example)
    assert all(len(line) <= 80 for line in page(name, 80).splitlines())


def test_a_wrong_example_would_be_noticed() -> None:
    from mlx_dpo.errors import UserError

    for line in ("mlx-dpo train --modle x", "mlx-dpo train --rank eight", "mlx-dpo sample", "mlx-dpo cache x"):
        with pytest.raises(UserError):
            parse(line)


def test_a_command_line_breaks_between_options() -> None:
    line = "mlx-dpo compare --prompt 'How do I boil an egg?' --temp 0.7 pairs.jsonl"
    assert wrap_command(line, 50).splitlines() == [
        "  mlx-dpo compare \\",
        "    --prompt 'How do I boil an egg?' --temp 0.7 \\",
        "    pairs.jsonl",
    ]


def test_defaults_and_required_options() -> None:
    text = page("mlx-dpo label", 80)
    assert text.startswith("Usage: mlx-dpo label --output PATH [OPTIONS] FILE...\n")
    assert "--pairs best-worst|all|top-k\n" in text and "[default: best-worst]" in text and "(required)" in text
    assert "[default: 8]" in page("mlx-dpo train", 80)
    assert "Usage: mlx-dpo report [OPTIONS] RUNS...\n" in page("mlx-dpo report", 80)
    assert "Usage: mlx-dpo models [OPTIONS] [FOLDER...]\n" in page("mlx-dpo models", 80)


def test_wide_terminals_do_not_make_long_lines() -> None:
    assert max(map(len, page("mlx-dpo train", 300).splitlines())) <= 100
