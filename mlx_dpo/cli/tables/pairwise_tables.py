"""Tables of a tournament and of benchmark tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

COUNT_ROWS = {
    "prompts": "prompts",
    "tuned won": "wins",
    "tied": "ties",
    "base won": "losses",
    "swayed by the order": "swayed_by_order",
}
RATE_ROWS = {
    "win rate": ("win_rate", "win_rate_interval"),
    "length-controlled": ("length_controlled_win_rate", "length_controlled_interval"),
}


def pairwise_table(summaries: Mapping[str, dict[str, Any]]) -> Table:
    """How answers were judged, a column for each adapter."""
    judge = next(iter(summaries.values()))["judge"]
    table = Table("answers", title=f"Judged by {escape(judge)}", title_justify="left")
    for name in summaries:
        table.add_column(Text(name or "tuned against base"), justify="right")
    for label, key in COUNT_ROWS.items():
        table.add_row(label, *(f"{one[key]:,}" for one in summaries.values()))
    table.add_row("without a verdict", *(f"{one['prompts'] - one['judged']:,}" for one in summaries.values()))
    for label, (key, ends) in RATE_ROWS.items():
        table.add_row(label, *(_rate(one[key], one[ends]) for one in summaries.values()))
    lengths = [one["mean_characters"] for one in summaries.values()]
    table.add_row("characters, base and tuned", *(f"{one['base']:.0f}, {one['tuned']:.0f}" for one in lengths))
    return table


def _rate(rate: float, interval: Sequence[float]) -> str:
    return f"{rate:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def tasks_table(tasks: Mapping[str, dict[str, dict[str, float]]], title: str) -> Table:
    """A row for each metric of each task."""
    table = Table("task", "metric", title=escape(title), title_justify="left")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for task, metrics in tasks.items():
        for metric, found in metrics.items():
            before, after = (_with_error(found, when) for when in ("before", "after"))
            change = f"{found['after'] - found['before']:+.4f}" if {"before", "after"} <= found.keys() else ""
            table.add_row(task, metric, before, after, change)
    return table


def _with_error(found: Mapping[str, float], when: str) -> str:
    if when not in found:
        return ""
    error = found.get(f"{when}_stderr")
    return f"{found[when]:.4f}" + ("" if error is None else f" ± {error:.4f}")
