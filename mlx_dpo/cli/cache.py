"""The command `mlx-dpo cache`."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Show or clear the cache of reference log-probs, of verdicts, and of facts about models.

    Training and evaluation cache the reference's log-probs of each pair, so that further runs on the same pairs, with
    another loss, beta or learning rate, don't compute them again. The fastest correct forward path of a model is
    determined when it is first used, its memory when `mlx-dpo models` lists it, and what mlx computes wrongly here, if
    anything, once for each version of mlx. Verdicts of `mlx-dpo label` are kept by judge. Missing values are computed,
    or the judge is asked, when they are needed.

    Examples:
      mlx-dpo cache
      mlx-dpo cache --clear
    """
    from mlx_dpo.forward.backend_check import backend_cache_file
    from mlx_dpo.forward.path_cache import list_path_files, path_cache_folder
    from mlx_dpo.labeling.verdict_cache import list_verdict_caches, verdict_cache_folder
    from mlx_dpo.reference.logp_cache import list_logp_caches, logp_cache_folder
    from mlx_dpo.training.estimate_cache import estimate_cache_folder, list_estimate_files

    files, paths, judges = list_logp_caches(), list_path_files(), list_verdict_caches()
    estimates = list_estimate_files()
    size = sum(file.bytes for file in files)
    if clear:
        judge_paths = (judge.path for judge in judges)
        for path in (*(file.path for file in files), *paths, *judge_paths, *estimates, backend_cache_file()):
            path.unlink(missing_ok=True)
    if json:
        listed = [{**asdict(file), "path": str(file.path)} for file in files]
        verdicts = [{**asdict(judge), "path": str(judge.path)} for judge in judges]
        counts = {"bytes": size, "files": listed, "known_models": len(paths), "verdicts": verdicts}
        counts["estimated_models"] = len(estimates)
        print_json({"folder": str(logp_cache_folder()), **counts, "cleared": clear})
        return
    if not clear:
        _print_files("reference", "pairs", [(file.model, file.pairs, file.bytes, file.modified) for file in files])
        judge_rows = [(judge.judge, judge.verdicts, judge.bytes, judge.modified) for judge in judges]
        _print_files("judge", "verdicts", judge_rows)
    label = "Deleted" if clear else "Total:"
    print_text(f"{label} {plural(len(files), 'file')}, {format_bytes(size)}, in {logp_cache_folder()}.")
    if paths:
        print_text(f"{label} how {plural(len(paths), 'model')} can be run, in {path_cache_folder()}.")
    if estimates:
        print_text(f"{label} the memory of {plural(len(estimates), 'model')}, in {estimate_cache_folder()}.")
    if judges:
        count = sum(judge.verdicts for judge in judges)
        print_text(f"{label} {plural(count, 'verdict')} of judges, in {verdict_cache_folder()}.")


def _print_files(title: str, counted: str, files: Sequence[tuple[str, int, int, float]]) -> None:
    """Print a table of (name, count, bytes, time of the last write), if there are any."""
    if not files:
        return
    table = Table(title)
    for heading in (counted, "size", "last written"):
        table.add_column(heading, justify="right")
    for name, count, num_bytes, modified in files:
        table.add_row(name, f"{count:,}", format_bytes(num_bytes), _date(modified))
    stdout_console.print(table)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
