"""Prompts from a file: lines of text, or the prompts of rows."""

from __future__ import annotations

from pathlib import Path

from mlx_dpo.data.examples import Example, Prompt
from mlx_dpo.data.files.json_lines import parse_json_line
from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.data.json_values import check_text
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import UserError, Where


def read_prompts(file: str) -> list[Prompt | Example]:
    """The lines of a .txt file; else a row each, which may be a whole example or a prompt alone.

    Raises:
        UserError: the file can't be read, or holds no prompts.
        RowError: a row has no prompt.
    """
    prompts = _prompts_from_text(file) if file.endswith(".txt") else _prompts_from_rows(file)
    if not prompts:
        raise UserError("holds no prompts", where=Where(file))
    return prompts


def _prompts_from_text(file: str) -> list[Prompt | Example]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=Where(file)) from None
    return [Prompt(line.strip()) for line in lines if line.strip()]


def _prompts_from_rows(file: str) -> list[Prompt | Example]:
    prompts: list[Prompt | Example] = []
    with open_rows(file) as stream:
        for number, _, line in stream.lines:
            where = Where(stream.name, number)
            row = parse_json_line(line, where)
            if isinstance(row, dict) and set(row) == {"prompt"} and isinstance(row["prompt"], str):
                check_text(row["prompt"], "prompt")
                prompts.append(Prompt(row["prompt"]))
            else:
                prompts += parse_examples(row, where)[:1]
    return prompts
