"""The output of `mlx-dpo data fix`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_dpo.data.json_values import printable
from mlx_dpo.data.row_fixing import FixReport

_FIRST_CHANGES = 50


def print_fix_report(report: FixReport, console: Console) -> None:
    """Print how many changes there are of each kind, and the first of them."""
    if not report.changes:
        console.print("Nothing to fix.", highlight=False)
        return
    table = Table(title="Changes", title_justify="left", title_style="bold")
    table.add_column("kind")
    table.add_column("rows", justify="right")
    for kind, count in report.counts().items():
        table.add_row(kind, f"{count:,}")
    console.print(table)
    for change in report.changes[:_FIRST_CHANGES]:
        line = Text.assemble((str(change.where), "cyan"), f": {change.kind}: {printable(change.message, 300)}")
        console.print(line, soft_wrap=True)
    if len(report.changes) > _FIRST_CHANGES:
        console.print(f"... and {len(report.changes) - _FIRST_CHANGES:,} more; --json lists all.", highlight=False)
