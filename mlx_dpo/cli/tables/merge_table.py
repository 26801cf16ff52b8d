"""The tables of `mlx-dpo label --merge`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from mlx_dpo.cli.tables.label_table import format_share

COUNT_LABELS = {
    "comparisons": "comparisons",
    "pairs": "pairs written",
    "undecided": "without a majority, left out",
    "repeated": "verdicts that a person gave again",
    "changed": "of these, other than before",
}


def merge_tables(summary: Mapping[str, Any]) -> Iterator[Table]:
    """Who has judged what, and how far each two people agree.

    Args:
        summary: of `merge_verdicts`.
    """
    counts = Table("verdicts")
    counts.add_column("count", justify="right")
    for name, count in summary["labellers"].items():
        counts.add_row(Text(f"of {name}"), f"{count:,}")
    for key, label in COUNT_LABELS.items():
        if summary["repeated"] or key not in ("repeated", "changed"):
            counts.add_row(label, f"{summary[key]:,}")
    yield counts
    if summary["agreement"]:
        table = Table("labellers")
        for heading in ("in common", "agreement", "Cohen's kappa"):
            table.add_column(heading, justify="right")
        for row in summary["agreement"]:
            share = format_share(row["agreement"], row["interval"])
            table.add_row(Text(" and ".join(row["labellers"])), f"{row['compared']:,}", share, f"{row['kappa']:.2f}")
        yield table
