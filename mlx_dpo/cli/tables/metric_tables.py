"""Tables of evaluation summaries: means with their intervals, overall and by column."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mlx_dpo.cli.console import print_message
from mlx_dpo.cli.tables.pairwise_tables import pairwise_table, tasks_table
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.data.json_values import printable
from mlx_dpo.errors import UserError

Summary = Mapping[str, Any]  # as evaluate and score print it with --json
COUNT_KEYS = ("pairs", "completions", "rows")
METRICS_BY_COLUMN = ("rewards/accuracies", "rewards/margins", "rewards/best", "rewards/mean", "loss")


def warn_about_training_settings(
    flags: Mapping[str, Any], names: Sequence[str], adapters: Sequence[Path | None]
) -> None:
    """Print a note if an adapter was trained with other settings than those that it is evaluated with by default.

    Args:
        flags: the options that the user gave.
        names: the settings to check.
        adapters: adapter folders; None is the model without adapter.
    """
    from mlx_dpo.adapters.adapter_folder import is_reward_model
    from mlx_dpo.objectives import find_loss_function

    defaults = TrainConfig().to_mapping() | find_loss_function(TrainConfig.loss).settings
    for adapter in filter(None, adapters):
        if is_reward_model(adapter):
            continue  # it is evaluated with the settings of its run
        try:
            run_config = read_yaml(adapter / CONFIG_FILE)
        except UserError:
            continue  # the adapter is not from mlx-dpo
        differences = [
            f"--{name.replace('_', '-')} {run_config[name]}"
            for name in names
            if name not in flags and run_config.get(name) not in (None, defaults[name])
        ]
        if differences:
            print_message(
                f"Note: {adapter} was trained with {' '.join(differences)}. Without these flags, rewards and loss are "
                "those of the default settings."
            )


def summary_tables(summaries: Mapping[str, Summary]) -> Iterator[Table]:
    """A table of all metrics, with columns for each summary, then a table for each column of --by.

    Args:
        summaries: by the name of their adapter; a single one may have an empty name.
    """
    first = next(iter(summaries.values()))
    unit = count_key(first)
    table = Table("metric", title=f"{first[unit]:,} {unit}", title_justify="left")
    for name in summaries:
        _add_metric_columns(table, name or "mean")
    for metric in metric_names(*summaries.values()):
        table.add_row(metric, *(cell for summary in summaries.values() for cell in _metric_cells(summary, metric)))
    yield table
    for column in first.get("by", {}):
        yield _table_by_column(column, summaries, unit)


def count_key(summary: Summary) -> str:
    """What a summary counts: "pairs", "completions" or "rows"."""
    return next(name for name in COUNT_KEYS if name in summary)


def metric_names(*summaries: Summary) -> list[str]:
    """The names of all metrics in summaries."""
    names = dict.fromkeys(name for summary in summaries for name in summary)
    return [name for name in names if any(isinstance(summary.get(name), float) for summary in summaries)]


def _table_by_column(column: str, summaries: Mapping[str, Summary], unit: str) -> Table:
    """A row per value of a column. Several summaries have one metric each, a single one two."""
    available = metric_names(*summaries.values())
    metrics = [metric for metric in METRICS_BY_COLUMN if metric in available][: 2 if len(summaries) == 1 else 1]
    table = Table(column, unit)
    for name in summaries:
        for metric in metrics:
            _add_metric_columns(table, f"{metric} {name}".strip())
    for label, group in next(iter(summaries.values()))["by"][column].items():
        groups = [summary["by"][column][label] for summary in summaries.values()]
        cells = [cell for summary in groups for metric in metrics for cell in _metric_cells(summary, metric)]
        table.add_row(Text(printable(label)), f"{group[unit]:,}", *cells)
    return table


def _add_metric_columns(table: Table, heading: str) -> None:
    table.add_column(Text(heading), justify="right")
    table.add_column("95% interval")


def _metric_cells(summary: Summary, metric: str) -> tuple[str, str]:
    """The mean and its interval."""
    if metric not in summary:
        return "", ""
    low, high = summary["intervals"].get(metric, (float("nan"), float("nan")))
    interval = "" if low != low else f"{format_metric(low, metric)} to {format_metric(high, metric)}"
    return format_metric(summary[metric], metric), interval


def format_metric(value: float, metric: str) -> str:
    """A mean, as a percentage if it is an accuracy."""
    return f"{value:.1%}" if metric.endswith("accuracies") else f"{value:.4f}"


def comparison_table(first: str, comparisons: Mapping[str, dict[str, Any]]) -> Table:
    """The paired tests of adapters against the first.

    Args:
        first: the name of the first adapter.
        comparisons: `against_first` of the other adapters' summaries, by their names.
    """
    table = Table("adapter", "metric", title=f"against {first}", title_justify="left")
    table.add_column("difference", justify="right")
    table.add_column("95% interval")
    table.add_column("p", justify="right")
    for name, tests in comparisons.items():
        for metric, test in tests.items():
            interval = " to ".join(f"{end:.4f}" for end in test["interval"])
            table.add_row(Text(name), metric, f"{test['difference']:+.4f}", interval, f"{test['p']:.4f}")
    return table


def evaluation_tables(summaries: list[dict[str, Any]]) -> Iterator[Table]:
    """All tables of `mlx-dpo evaluate`: metrics, comparison with the first adapter, win rates and tasks."""
    names = _short_paths([summary.get("adapter", "") for summary in summaries])
    by_name = dict(zip(names, summaries, strict=True))
    yield from summary_tables(by_name)
    if len(summaries) > 1:
        yield comparison_table(names[0], {name: by_name[name]["against_first"] for name in names[1:]})
    if "head_to_head" in summaries[0]:
        yield pairwise_table({name: summary["head_to_head"] for name, summary in by_name.items()})
    for name, summary in by_name.items():
        if "tasks" in summary:
            yield tasks_table(summary["tasks"], f"Tasks before and after {name}".strip())


def _short_paths(paths: list[str]) -> list[str]:
    """Paths relative to the folder that all of them are in."""
    if len(paths) == 1:
        return paths
    parents = [Path(path).absolute().parent for path in paths]
    return [os.path.relpath(path, os.path.commonpath(parents)) for path in paths]
