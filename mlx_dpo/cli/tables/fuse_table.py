"""The table of `mlx-dpo fuse`: base, adapter and candidates, and the model that was saved."""

from __future__ import annotations

from rich.table import Table

from mlx_dpo.export.fuse.fuse_result import FUSE_TABLE_COLUMNS, FusedModelReport


def fuse_table(fused: FusedModelReport) -> Table:
    """A row per measured model; that of the fused model is bold."""
    table = Table(*FUSE_TABLE_COLUMNS, title="Held-out pairs", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for measurement in fused.measurements:
        table.add_row(*measurement.table_cells, style="bold" if measurement is fused.fused_model else None)
    return table
