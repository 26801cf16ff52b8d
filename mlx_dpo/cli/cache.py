"""The command `mlx-dpo cache`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import print_json, print_text, stdout_console
from mlx_dpo.utils.formatting import format_bytes, plural


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete the cache.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show or clear the cache of reference log-probs and of the models' forward paths.

    Training and evaluation cache the reference's log-probs of each pair, so that further runs on the same pairs, with
    another loss, beta or learning rate, don't compute them again. The fastest correct forward path of a model is
    determined when it is first used. Missing values are computed when they are needed.

    [bold]Examples[/]

      mlx-dpo cache

      mlx-dpo cache --clear
    """
    from mlx_dpo.forward.path_cache import list_path_files, path_cache_folder
    from mlx_dpo.reference.logp_cache import list_logp_caches, logp_cache_folder

    files, paths = list_logp_caches(), list_path_files()
    size = sum(file.bytes for file in files)
    if clear:
        for file in files:
            file.path.unlink(missing_ok=True)
        for path in paths:
            path.unlink(missing_ok=True)
    if json:
        listed = [{**asdict(file), "path": str(file.path)} for file in files]
        counts = {"bytes": size, "files": listed, "known_models": len(paths)}
        print_json({"folder": str(logp_cache_folder()), **counts, "cleared": clear})
        return
    if files and not clear:
        table = Table("reference")
        for heading in ("pairs", "size", "last written"):
            table.add_column(heading, justify="right")
        for file in files:
            written = datetime.fromtimestamp(file.modified).strftime("%Y-%m-%d %H:%M")
            table.add_row(file.model, f"{file.pairs:,}", format_bytes(file.bytes), written)
        stdout_console.print(table)
    label = "Deleted" if clear else "Total:"
    print_text(f"{label} {plural(len(files), 'file')}, {format_bytes(size)}, in {logp_cache_folder()}.")
    if paths:
        print_text(f"{label} how {plural(len(paths), 'model')} can be run, in {path_cache_folder()}.")
