"""Tables of pairwise evaluations and of benchmark tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

COUNT_ROWS = {
    "prompts": "prompts",
    "tuned won": "wins",
    "tied": "ties",
    "base won": "losses",
    "changed with the order": "swayed_by_order",
}
RATE_ROWS = {
    "win rate": ("win_rate", "win_rate_interval"),
    "length-controlled": ("length_controlled_win_rate", "length_controlled_interval"),
}


def pairwise_table(summaries: Mapping[str, dict[str, Any]]) -> Table:
    """The verdicts of a judge on completions of the base and of tuned models.

    Args:
        summaries: `head_to_head` of the adapters' summaries, by their names.
    """
    judge = next(iter(summaries.values()))["judge"]
    table = Table("completions", title=f"Judged by {judge}", title_justify="left")
    for name in summaries:
        table.add_column(Text(name or "tuned against base"), justify="right")
    for label, key in COUNT_ROWS.items():
        table.add_row(label, *(f"{summary[key]:,}" for summary in summaries.values()))
    missing = (summary["prompts"] - summary["judged"] for summary in summaries.values())
    table.add_row("without a verdict", *(f"{count:,}" for count in missing))
    for label, (key, interval_key) in RATE_ROWS.items():
        rates = ((summary[key], *summary[interval_key]) for summary in summaries.values())
        table.add_row(label, *(f"{rate:.1%} ({low:.1%} to {high:.1%})" for rate, low, high in rates))
    lengths = (summary["mean_characters"] for summary in summaries.values())
    table.add_row("characters, base and tuned", *(f"{mean['base']:.0f}, {mean['tuned']:.0f}" for mean in lengths))
    return table


def tasks_table(tasks: Mapping[str, dict[str, dict[str, float]]], title: str) -> Table:
    """A row for each metric of each task: before, after, and the change."""
    table = Table("task", "metric", title=title, title_justify="left")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right")
    for task, metrics in tasks.items():
        for metric, values in metrics.items():
            before, after = (_value_with_error(values, when) for when in ("before", "after"))
            change = f"{values['after'] - values['before']:+.4f}" if before and after else ""
            table.add_row(task, metric, before, after, change)
    return table


def _value_with_error(values: Mapping[str, float], when: str) -> str:
    if when not in values:
        return ""
    error = values.get(f"{when}_stderr")
    return f"{values[when]:.4f}" + ("" if error is None else f" ± {error:.4f}")
