"""Tables of what was measured: means with their intervals, of all and by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

COUNTS = ("pairs", "completions", "rows")
SHORT = ("rewards/accuracies", "rewards/margins", "rewards/best", "rewards/mean", "loss")  # shown by column


def summary_tables(summaries: Mapping[str, dict[str, Any]]) -> Iterator[Table]:
    """One table of all metrics, a column for each summary under its name; then one for each column gone by."""
    first = next(iter(summaries.values()))
    what = count_of(first)
    table = Table("metric", title=f"{first[what]:,} {what}", title_justify="left")
    for name in summaries:
        table.add_column(Text(name or "mean"), justify="right")
        table.add_column("95% interval")
    for metric in metrics_of(*summaries.values()):
        cells = [cell for summary in summaries.values() for cell in _cells(summary, metric)]
        table.add_row(metric, *cells)
    yield table
    for column in first.get("by", {}):
        yield _by(column, summaries, what)


def count_of(summary: Mapping[str, Any]) -> str:
    """What a summary counts: pairs, completions or rows."""
    return next(name for name in COUNTS if name in summary)


def metrics_of(*summaries: Mapping[str, Any]) -> list[str]:
    """The names of all metrics."""
    names = dict.fromkeys(name for summary in summaries for name in summary)
    return [name for name in names if any(isinstance(s.get(name), float) for s in summaries)]


def _by(column: str, summaries: Mapping[str, dict[str, Any]], what: str) -> Table:
    table = Table(escape(column), what)
    shown = [(name, metric) for metric in SHORT for name, s in summaries.items() if metric in s][: 2 * len(summaries)]
    for name, metric in shown:
        table.add_column(Text(f"{metric} {name}".strip()), justify="right")
        table.add_column("95% interval")
    for label, counted in next(iter(summaries.values()))["by"][column].items():
        of_label = {name: summary["by"][column][label] for name, summary in summaries.items()}
        cells = [cell for name, metric in shown for cell in _cells(of_label[name], metric)]
        table.add_row(Text(label), f"{counted[what]:,}", *cells)
    return table


def _cells(summary: Mapping[str, Any], metric: str) -> tuple[str, str]:
    """The mean, and where it lies."""
    if metric not in summary:
        return "", ""
    low, high = summary["intervals"].get(metric, (float("nan"), float("nan")))
    interval = "" if low != low else f"{number(low, metric)} to {number(high, metric)}"
    return number(summary[metric], metric), interval


def number(value: float, metric: str) -> str:
    """A mean for people."""
    return f"{value:.1%}" if metric.endswith("accuracies") else f"{value:.4f}"
