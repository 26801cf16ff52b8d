"""mlx-dpo cache"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from mlx_dpo.cli.console import print_json, stdout_console


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all of it.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show or clear the cache of reference log-probs.

    Training and evaluating keep the reference's log-probs of every pair, so that a second run on the same pairs, with
    another loss, beta or learning rate, computes none of them. They are made again where they are missing.

    [bold]Examples[/]

      mlx-dpo cache

      mlx-dpo cache --clear
    """
    from mlx_dpo.reference.logp_cache import list_logp_caches, logp_cache_folder

    files = list_logp_caches()
    size = sum(file.bytes for file in files)
    if clear:
        for file in files:
            file.path.unlink(missing_ok=True)
    if json:
        listed = [{**asdict(file), "path": str(file.path)} for file in files]
        print_json({"folder": str(logp_cache_folder()), "bytes": size, "files": listed, "cleared": clear})
        return
    if not clear and files:
        table = Table()
        for heading in ("reference", "pairs", "size", "last written"):
            table.add_column(heading, justify="left" if heading == "reference" else "right")
        for file in files:
            written = datetime.fromtimestamp(file.modified).strftime("%Y-%m-%d %H:%M")
            table.add_row(file.model, f"{file.pairs:,}", _size(file.bytes), written)
        stdout_console.print(table)
    verb = "Deleted" if clear else "In all"
    stdout_console.print(
        f"{verb} {len(files)} files, {_size(size)}, in {logp_cache_folder()}.", soft_wrap=True, markup=False
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
