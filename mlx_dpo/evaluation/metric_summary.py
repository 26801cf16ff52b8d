"""Summarizes measurements of examples: means with intervals, of all examples and by columns of their rows."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_dpo.data.examples import Example
from mlx_dpo.data.row_parsing import RowParser
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.metrics import EXTREMES, METRICS, RATE_METRICS, mean_metrics
from mlx_dpo.utils.statistics import bootstrap_interval, paired_test, win_rate_interval

COMPARED_METRICS = ("loss", "rewards/accuracies", "rewards/margins")
MISSING_LABEL = "(none)"  # the label of rows that lack the column


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of each example under one policy.

    Attributes:
        unit: what an example is, in the plural: pairs, completions or rows.
        table: [examples, metrics], NaN if an example lacks a metric.
        row_ids: [examples] the row of each example; examples of the same row are not independent.
        labels: by column, [examples] the value of their rows in it.
        metric_names: [metrics].
    """

    unit: str
    table: np.ndarray
    row_ids: Sequence[Hashable]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metric_names: tuple[str, ...] = METRICS

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric."""
        return mean_metrics([self.table], self.metric_names)

    @property
    def summary(self) -> dict[str, Any]:
        """The number of examples, means and their 95% `intervals`; with labels, `by` column and label as well."""
        summary = self._summarize(np.arange(len(self.table)))
        if self.labels:
            summary["by"] = {column: self._by_label(labels) for column, labels in self.labels.items()}
        return summary

    def _by_label(self, labels: Sequence[str]) -> dict[str, Any]:
        array = np.array(labels, object)
        return {label: self._summarize(np.flatnonzero(array == label)) for label in sorted(set(labels))}

    def _summarize(self, indices: np.ndarray) -> dict[str, Any]:
        table, row_ids = self.table[indices], [self.row_ids[i] for i in indices]
        means = mean_metrics([table], self.metric_names)
        columns = {name: table[:, self.metric_names.index(name)] for name in means}
        intervals = {
            name: list((win_rate_interval if name in RATE_METRICS else bootstrap_interval)(values, groups=row_ids))
            for name, values in columns.items()
            if name not in EXTREMES and not np.isnan(values).all()  # a difference of two means has no values of its own
        }
        return {self.unit: len(indices), **means, "intervals": intervals}


def compare_results(baseline: EvaluationResult, candidate: EvaluationResult) -> dict[str, Any]:
    """Test for changes between two policies on the same examples.

    Returns:
        By metric, the mean `difference`, its 95% `interval`, and `p` of the paired test.
    """
    changes = {}
    for name in COMPARED_METRICS:
        before, after = (result.table[:, result.metric_names.index(name)] for result in (baseline, candidate))
        if not np.isnan(after - before).all():
            test = paired_test(before, after, groups=baseline.row_ids)
            changes[name] = {"difference": test.difference, "interval": list(test.interval), "p": test.p}
    return changes


class ColumnLabels:
    """A row parser that also keeps the values of some columns, by line.

    Args:
        parse: makes the examples of a row.
        names: of the columns.
    """

    def __init__(self, parse: RowParser, names: Iterable[str]) -> None:
        self.parse, self.names = parse, tuple(dict.fromkeys(names))
        self._labels: dict[int | None, tuple[str, ...]] = {}
        self._columns: dict[str, None] = {}  # of all rows, in order

    def __call__(self, row: Any, where: Where) -> Sequence[Example]:
        """Parse a row; see `RowParser`."""
        examples = self.parse(row, where)
        if self.names and where.line not in self._labels:
            self._labels[where.line] = tuple(column_label(row, name) for name in self.names)
            self._columns.update(dict.fromkeys(row))
        return examples

    def labels_of_lines(self, lines: Sequence[int | None]) -> dict[str, list[str]]:
        """The labels of the rows on some lines, by column.

        Raises:
            UserError: no row has one of the columns.
        """
        for name in self.names:
            if name not in self._columns:
                hint = f"The rows have: {', '.join(map(str, self._columns))}."
                raise UserError(f"no row has the column {name!r}", field="by", hint=hint)
        return {name: [self._labels[line][i] for line in lines] for i, name in enumerate(self.names)}


def column_label(row: Mapping[str, Any], column: str) -> str:
    """A row's value in a column as text."""
    value = row.get(column)
    if value is None:
        return MISSING_LABEL
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
