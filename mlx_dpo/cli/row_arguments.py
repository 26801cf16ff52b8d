"""What the commands that read rows share: arguments, the tokenizer, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from mlx_dpo.cli.console import stderr_console

FILE_KINDS = "A .jsonl, .json, .csv, .tsv (all also as .gz) or .parquet file"
File = Annotated[str, typer.Argument(metavar="FILE", help=f"{FILE_KINDS}, or - for stdin.")]
OutputFile = Annotated[
    str, typer.Argument(metavar="OUT", help="The new file, compressed if its name ends in .gz; - for stdout.")
]


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model. Raises `UserError`."""
    from mlx_dpo.forward.model_loading import load_tokenizer

    return load_tokenizer(model)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr if that is a terminal. Yields the function that sets the share done."""
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=stderr_console, transient=True, disable=not stderr_console.is_terminal) as bar:
        task = bar.add_task(escape(label), total=1.0)
        yield lambda share: bar.update(task, completed=share)
