"""Prompts to answer, from a file: lines of text, or the prompts of rows."""

from __future__ import annotations

from pathlib import Path

from mlx_dpo.data.conversations import Turns
from mlx_dpo.data.messages import check_text
from mlx_dpo.data.row_files import lines_of, open_source, parse_line
from mlx_dpo.data.row_formats import examples_of
from mlx_dpo.errors import UserError, Where


def read_prompts(file: str) -> list[Turns]:
    """The lines of a .txt file; else the prompt of each row, which may be a whole pair or a prompt alone.

    Raises: `UserError`; `RowError` where a row has no prompt.
    """
    prompts = _lines_of_text(file) if file.endswith(".txt") else _prompts_of_rows(file)
    if not prompts:
        raise UserError("holds no prompts", where=Where(file))
    return prompts


def _lines_of_text(file: str) -> list[Turns]:
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=Where(file)) from None
    return [line.strip() for line in lines if line.strip()]


def _prompts_of_rows(file: str) -> list[Turns]:
    prompts: list[Turns] = []
    with open_source(file) as source:
        for number, _, line in lines_of(source):
            where = Where(source.name, number)
            row = parse_line(line, where)
            if isinstance(row, dict) and set(row) == {"prompt"} and isinstance(row["prompt"], str):
                check_text(row["prompt"], "prompt")
                prompts.append(row["prompt"])
            else:
                prompts += [example.prompt for example in examples_of(row, where)[:1]]
    return prompts
