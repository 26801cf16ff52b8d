"""Markdown that the texts inside it can't break."""

from __future__ import annotations

from collections.abc import Iterable


def one_line(text: object) -> str:
    """A text with all white space, including line breaks, reduced to single spaces."""
    return " ".join(str(text).split())


def inline_code(text: object) -> str:
    """A code span; backticks in the text are allowed."""
    line = one_line(text)
    return f"`` {line} ``".replace("``", "`" * (line.count("`") + 2)) if "`" in line else f"`{line}`"


def code_block(text: str, language: str = "") -> str:
    """A fenced code block; fences in the text are allowed."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; line breaks and `|` in cells become spaces."""
    header = list(header)
    lines = [header, ["---"] * len(header), *([one_line(cell).replace("|", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
