"""Output of commands: results go to stdout, everything else to stderr. With --json, stdout holds one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from mlx_dpo.utils.json_files import finite_values
from mlx_dpo.utils.safe_text import escape_json_controls, without_terminal_escapes


class SafeConsole(Console):
    """The one place where text is printed: control characters are removed, and strings are never markup.

    Text comes from data files, adapters, models and their answers. Styles are given by `Text`, and reach the terminal
    through Rich alone.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        """Make a console for stdout or stderr; other options as of `rich.console.Console`."""
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, **options)

    @property
    def is_terminal(self) -> bool:
        """Whether the output is a terminal that can redraw lines; a dumb one gets what a log file gets."""
        return super().is_terminal and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object, without the control characters in its text."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(without_terminal_escapes(segment.text), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """A spinner with a text."""
        shown = _PlainStatus("", console=self, **options)
        shown.update(status)
        return shown


class _PlainStatus(Status):
    """A spinner whose text is not markup."""

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(Text(status) if isinstance(status, str) else status, **options)


stdout_console = SafeConsole()
stderr_console = SafeConsole(stderr=True)


def print_text(text: str) -> None:
    """Print a line of a command's results, unwrapped, to stdout."""
    stdout_console.print(text, soft_wrap=True)


def print_tables(tables: Iterable[RenderableType]) -> None:
    """Print tables to stdout."""
    for table in tables:
        stdout_console.print(table)


def print_message(text: str) -> None:
    """Print a line that is not a result, unwrapped, to stderr."""
    stderr_console.print(text, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON object to stdout; NaN and infinity become null."""
    sys.stdout.write(escape_json_controls(json.dumps(finite_values(value), ensure_ascii=False)) + "\n")
    sys.stdout.flush()
