"""The table of `mlx-dpo rounds`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from mlx_dpo.rounds.round_table import TABLE_ROWS, table_cells


def rounds_table(rounds: Sequence[Mapping[str, Any]], judge: str) -> Table:
    """A column for each round.

    Args:
        rounds: their results.
        judge: name of the judge.
    """
    table = Table("round", title=f"Judged by {judge}", title_justify="left")
    for values in rounds:
        table.add_column(str(values["round"]), justify="right")
    for row in TABLE_ROWS:
        cells = table_cells(row, rounds)
        if any(cells):
            table.add_row(row.label, *cells)
    return table
