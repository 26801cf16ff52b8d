"""Output of commands: results go to stdout, everything else to stderr. With --json, stdout holds one JSON object."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType

stdout_console = Console(highlight=False)
stderr_console = Console(stderr=True, highlight=False)


def print_text(text: str) -> None:
    """Print a line of a command's results, unwrapped and without markup, to stdout."""
    stdout_console.print(text, soft_wrap=True, markup=False)


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Print tables to stdout."""
    for table in tables:
        stdout_console.print(table)


def print_message(text: str) -> None:
    """Print a line that is not a result, unwrapped and without markup, to stderr."""
    stderr_console.print(text, soft_wrap=True, markup=False)


def print_json(value: Any) -> None:
    """Print one JSON object to stdout; NaN and infinity become null."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
