"""Tables of what was measured: means with their intervals, of all and by column."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mlx_dpo.cli.console import print_note
from mlx_dpo.cli.tables.pairwise_tables import pairwise_table, tasks_table
from mlx_dpo.config import TrainConfig, read_yaml
from mlx_dpo.data.messages import printable
from mlx_dpo.errors import UserError

DEFAULTS = {"beta": 0.1, "label_smoothing": 0.0}  # of the loss that is measured where none is given
COUNT_KEYS = ("pairs", "completions", "rows")
METRICS_BY_COLUMN = ("rewards/accuracies", "rewards/margins", "rewards/best", "rewards/mean", "loss")  # by column


def warn_about_training_settings(
    flags: Mapping[str, Any], names: Sequence[str], adapters: Sequence[Path | None]
) -> None:
    """Say what an adapter was trained with of some knobs that were not given, where it is not the default."""
    for adapter in filter(None, adapters):
        try:
            trained = read_yaml(adapter / "config.yaml")
        except UserError:
            continue  # not one of ours
        plain = TrainConfig()
        others = {
            name: trained[name]
            for name in names
            if name not in flags and trained.get(name) not in (None, getattr(plain, name), DEFAULTS.get(name))
        }
        if others:
            told = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in others.items())
            print_note(
                f"Note: {adapter} was trained with {told}; without these flags rewards and loss are of the defaults."
            )


def summary_tables(summaries: Mapping[str, dict[str, Any]]) -> Iterator[Table]:
    """One table of all metrics, a column for each summary under its name; then one for each column gone by."""
    first = next(iter(summaries.values()))
    what = count_key(first)
    table = Table("metric", title=f"{first[what]:,} {what}", title_justify="left")
    for name in summaries:
        table.add_column(Text(name or "mean"), justify="right")
        table.add_column("95% interval")
    for metric in metric_names(*summaries.values()):
        cells = [cell for summary in summaries.values() for cell in _cells(summary, metric)]
        table.add_row(metric, *cells)
    yield table
    for column in first.get("by", {}):
        yield _by(column, summaries, what)


def count_key(summary: Mapping[str, Any]) -> str:
    """What a summary counts: pairs, completions or rows."""
    return next(name for name in COUNT_KEYS if name in summary)


def metric_names(*summaries: Mapping[str, Any]) -> list[str]:
    """The names of all metrics."""
    names = dict.fromkeys(name for summary in summaries for name in summary)
    return [name for name in names if any(isinstance(s.get(name), float) for s in summaries)]


def _by(column: str, summaries: Mapping[str, dict[str, Any]], what: str) -> Table:
    """The first of `SHORT` that there is, of each summary; of one alone the second as well."""
    all_metrics = metric_names(*summaries.values())
    metrics = [metric for metric in METRICS_BY_COLUMN if metric in all_metrics][: 2 if len(summaries) == 1 else 1]
    table = Table(escape(column), what)
    for name in summaries:
        for metric in metrics:
            table.add_column(Text(f"{metric} {name}".strip()), justify="right")
            table.add_column("95% interval")
    for label, counted in next(iter(summaries.values()))["by"][column].items():
        of_label = [summary["by"][column][label] for summary in summaries.values()]
        cells = [cell for summary in of_label for metric in metrics for cell in _cells(summary, metric)]
        table.add_row(Text(printable(label)), f"{counted[what]:,}", *cells)
    return table


def _cells(summary: Mapping[str, Any], metric: str) -> tuple[str, str]:
    """The mean, and where it lies."""
    if metric not in summary:
        return "", ""
    low, high = summary["intervals"].get(metric, (float("nan"), float("nan")))
    interval = "" if low != low else f"{format_metric(low, metric)} to {format_metric(high, metric)}"
    return format_metric(summary[metric], metric), interval


def format_metric(value: float, metric: str) -> str:
    """A mean for people."""
    return f"{value:.1%}" if metric.endswith("accuracies") else f"{value:.4f}"


def comparison_table(first: str, others: Mapping[str, dict[str, Any]]) -> Table:
    """What changed from the first policy to others."""
    table = Table("adapter", "metric", title=f"against {escape(first)}", title_justify="left")
    table.add_column("difference", justify="right")
    table.add_column("95% interval")
    table.add_column("p", justify="right")
    for name, changes in others.items():
        for metric, test in changes.items():
            ends = " to ".join(f"{end:.4f}" for end in test["interval"])
            table.add_row(Text(name), metric, f"{test['difference']:+.4f}", ends, f"{test['p']:.4f}")
    return table


def evaluation_tables(told: list[dict[str, Any]]) -> Iterator[Table]:
    """What was found of some policies."""
    by_name = dict(zip(_short([one.get("adapter", "") for one in told]), told, strict=True))
    yield from summary_tables(by_name)
    if len(told) > 1:
        first, *others = by_name
        yield comparison_table(first, {name: by_name[name]["against_first"] for name in others})
    if "head_to_head" in told[0]:
        yield pairwise_table({name: one["head_to_head"] for name, one in by_name.items()})
    for name, one in by_name.items():
        if "tasks" in one:
            yield tasks_table(one["tasks"], f"Tasks before and after {name}".strip())


def _short(names: list[str]) -> list[str]:
    """Paths without what all of them begin with."""
    if len(names) == 1:
        return names
    parents = [Path(name).absolute().parent for name in names]
    return [os.path.relpath(name, os.path.commonpath(parents)) for name in names]
