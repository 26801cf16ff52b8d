"""Prompts from a file: lines of text, or the prompts of rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlx_dpo.data import row_fields
from mlx_dpo.data.conversations import check_text_or_messages, prompt_messages
from mlx_dpo.data.examples import Example, Prompt
from mlx_dpo.data.files.json_lines import parse_json_line
from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.messages import is_hh_dialogue
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.data.table_nulls import strip_table_nulls
from mlx_dpo.data.text_values import decode_text_values
from mlx_dpo.errors import RowError, UserError, Where


class PromptRow(NamedTuple):
    """A prompt, and where it is from.

    Attributes:
        prompt: the prompt, or an example that has it.
        where: file and line.
        row: the row that it was read from; empty for a line of text.
    """

    prompt: Prompt | Example
    where: Where
    row: Mapping[str, Any]


def read_prompts(file: str) -> list[Prompt | Example]:
    """The prompts of `read_prompt_rows`. Raises `UserError` or `RowError`."""
    return [row.prompt for row in read_prompt_rows(file)]


def read_prompt_rows(file: str) -> list[PromptRow]:
    """The lines of a .txt file; else a row each, which may be a whole example or a prompt alone.

    Raises:
        UserError: the file can't be read, or holds no prompts.
        RowError: a row has no prompt.
    """
    prompts = _prompts_from_text(file) if file.endswith(".txt") else _prompts_from_rows(file)
    if not prompts:
        raise UserError("holds no prompts", where=Where(file))
    return prompts


def _prompts_from_text(file: str) -> list[PromptRow]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=Where(file)) from None
    return [
        PromptRow(Prompt(line.strip()), Where(file, number), {}) for number, line in enumerate(lines, 1) if line.strip()
    ]


def _prompts_from_rows(file: str) -> list[PromptRow]:
    prompts: list[PromptRow] = []
    with open_rows(file) as stream:
        for number, _, line in stream.lines:
            where = Where(stream.name, number)
            row = parse_json_line(line, where)
            prompts.append(PromptRow(parse_prompt(row, where), where, row))
    return prompts


def parse_prompt(row: Any, where: Where) -> Prompt | Example:
    """The first example of a row, or if it has none that can be used, its prompt with tools and template arguments.

    Raises:
        RowError: there is no prompt either.
    """
    try:
        if examples := parse_examples(row, where):
            return examples[0]
        error = RowError("has no prompt", kind="no prompt", where=where)
    except RowError as raised:
        error = raised
    if not isinstance(row, dict):
        raise error
    try:
        return _prompt_alone(strip_table_nulls(decode_text_values(row)), error)
    except RowError as raised:
        raised.where = where
        raise


def _prompt_alone(row: dict[str, Any], no_example: RowError) -> Prompt:
    named = columns.prompt(row)
    if named is None:
        raise no_example
    name, value = columns.without_answer(named)
    check_text_or_messages(name, value)
    is_hh = isinstance(value, str) and is_hh_dialogue(value)
    turns = value if isinstance(value, str) and not is_hh else prompt_messages(name, value)
    prompt, _, _ = columns.with_system(row, turns, [], [])
    tools, template_kwargs = row_fields.parse_tools(row), row_fields.parse_template_kwargs(row)
    return Prompt(prompt, tools, template_kwargs, is_hh and not columns.system_text(row))
