"""What was measured of examples, and how sure the means of it are: of all, and by what their rows say of them."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_dpo.data.examples import Example
from mlx_dpo.data.row_formats import RowParser
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.metrics import METRICS, mean_metrics
from mlx_dpo.utils.statistics import bootstrap_interval, paired_test, win_rate_interval

COMPARED_METRICS = ("loss", "rewards/accuracies", "rewards/margins")
MISSING_LABEL = "(none)"  # the label of rows that lack the column


@dataclass(frozen=True)
class EvaluationResult:
    """Examples one by one.

    Attributes:
        what: what they are called.
        table: [examples, names], NaN where there is no such number.
        rows: [examples], which row each is from; those of one row are not independent.
        labels: by column, [examples], what their rows say there.
    """

    unit: str
    table: np.ndarray
    row_ids: Sequence[Hashable]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    metric_names: tuple[str, ...] = METRICS

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each."""
        return mean_metrics([self.table], self.metric_names)

    @property
    def summary(self) -> dict[str, Any]:
        """How many there are, the means, their `intervals` at 95%, and, with columns to go by, the same `by` each."""
        told = self._told(np.arange(len(self.table)))
        if self.labels:
            told["by"] = {column: self._by(labels) for column, labels in self.labels.items()}
        return told

    def _by(self, labels: Sequence[str]) -> dict[str, Any]:
        of = np.array(labels, object)
        return {label: self._told(np.flatnonzero(of == label)) for label in sorted(set(labels))}

    def _told(self, which: np.ndarray) -> dict[str, Any]:
        table, rows = self.table[which], [self.row_ids[i] for i in which]
        means = mean_metrics([table], self.metric_names)
        columns = {name: table[:, self.metric_names.index(name)] for name in means}
        intervals = {
            name: (win_rate_interval if name.endswith("accuracies") else bootstrap_interval)(values, groups=rows)
            for name, values in columns.items()
            if not np.isnan(values).all()  # a difference of two columns' means has no values of its own
        }
        return {self.unit: len(which), **means, "intervals": {name: list(ends) for name, ends in intervals.items()}}


def compare_results(baseline: EvaluationResult, candidate: EvaluationResult) -> dict[str, Any]:
    """What changed from one policy to another on the same examples: by metric, `difference`, `interval` and `p`."""
    told = {}
    for name in COMPARED_METRICS:
        before, after = (one.table[:, one.metric_names.index(name)] for one in (baseline, candidate))
        if not np.isnan(after - before).all():
            test = paired_test(before, after, groups=baseline.row_ids)
            told[name] = {"difference": test.difference, "interval": list(test.interval), "p": test.p}
    return told


class ColumnLabels:
    """A reader of rows that remembers what they say in some columns, by line."""

    def __init__(self, read: RowParser, names: Iterable[str]) -> None:
        self.read, self.names = read, tuple(dict.fromkeys(names))
        self._said: dict[int | None, tuple[str, ...]] = {}
        self._seen: dict[str, None] = {}

    def __call__(self, row: Any, where: Where) -> Sequence[Example]:
        examples = self.read(row, where)
        if self.names and where.line not in self._said:
            self._said[where.line] = tuple(column_label(row, name) for name in self.names)
            self._seen.update(dict.fromkeys(row))
        return examples

    def labels_of_lines(self, lines: Sequence[int | None]) -> dict[str, list[str]]:
        """By column, what the rows on some lines say. Raises `UserError` for a column that no row has."""
        for name in self.names:
            if name not in self._seen:
                hint = f"Columns there: {', '.join(map(str, self._seen))}."
                raise UserError(f"no row has the column {name!r} to go by", field="by", hint=hint)
        return {name: [self._said[line][i] for line in lines] for i, name in enumerate(self.names)}


def column_label(row: Mapping[str, Any], column: str) -> str:
    """What a row says in a column, as text."""
    value = row.get(column)
    return (
        MISSING_LABEL if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
