"""A table of prompts with completions before and after training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def completion_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """A table whose cells are texts, or lists of messages."""
    table = Table(*columns, show_lines=True, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(Text(_conversation_text(cell)) for cell in row))
    return table


def _conversation_text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    return "\n".join(f"{message['role']}: {message.get('content')}" for message in cell)
