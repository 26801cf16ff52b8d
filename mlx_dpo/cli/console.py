"""Where commands print: results on stdout, all else on stderr; with --json stdout holds one object and nothing more."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from rich.console import Console

stdout_console = Console(highlight=False)
stderr_console = Console(stderr=True, highlight=False)


def print_note(text: str) -> None:
    """A line for people, on stderr."""
    stderr_console.print(text, soft_wrap=True, markup=False)


def print_json(value: Any) -> None:
    """One JSON object on stdout; numbers that JSON has no word for (NaN, infinity) as null."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value
