"""The charts of a report: series of points, which assets/charts.js and `chart_images` draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.reporting.curve_specs import CURVES, CurveSpec
from mlx_dpo.reporting.run_statistics import EvalRecord, RunStatistics

MAX_CURVE_POINTS = 400
MAX_SCATTER_POINTS = 1_500
HISTOGRAM_BINS = 24


@dataclass(frozen=True)
class Series:
    """One line, point cloud or histogram. Its fields are keys that assets/charts.js reads.

    Attributes:
        label: its name in the legend.
        points: (x, y), or (x, y, text of the tooltip).
        color: index among the page's colors.
        dashed: draw the line dashed, with markers.
        faint: draw the line lighter.
        cross: draw crosses as markers.
    """

    label: str
    points: Sequence[tuple[Any, ...]]
    color: int = 0
    dashed: bool = False
    faint: bool = False
    cross: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: its key in the page and its file name as an image.
        title: its heading.
        kind: "line", "scatter", "path" or "bar".
        x_label: label of the x axis.
        y_label: label of the y axis.
        series: what is drawn.
        description: how to read it; empty if the title says it.
    """

    name: str
    title: str
    kind: str
    x_label: str
    y_label: str
    series: list[Series]
    description: str = ""

    def to_mapping(self) -> dict[str, Any]:
        """The chart as plain values, for the page."""
        return {"type": self.kind, "x": self.x_label, "y": self.y_label, "series": list(map(vars, self.series))}


def build_charts(runs: Sequence[RunStatistics]) -> list[Chart]:
    """All charts for which the runs have numbers; several runs are overlaid."""
    charts = [*_curves(runs), _reward_kl(runs), *_pair_charts(runs)]
    return [chart for chart in charts if any(series.points for series in chart.series)]


def _curves(runs: Sequence[RunStatistics]) -> Iterator[Chart]:
    for spec in CURVES:
        series: list[Series] = []
        for run_index, run in enumerate(runs):
            for metric_index in range(len(spec.metrics)):
                series += _curve_series(run, spec, metric_index, None if len(runs) == 1 else run_index)
        if spec.name == "memory":
            series += _memory_limits(runs)
        applies = not (spec.is_implicit and _are_reward_models(runs))
        label, description = (spec.y_label, spec.description) if applies else ("", "")
        yield Chart(spec.name, spec.title, "line", "step", label, series, description)


def _are_reward_models(runs: Sequence[RunStatistics]) -> bool:
    return all(run.is_reward_model for run in runs)


def _curve_series(run: RunStatistics, spec: CurveSpec, metric_index: int, run_index: int | None) -> Iterator[Series]:
    """A metric over training batches, and dashed over held-out examples. run_index is None if there is one run."""
    metric, has_several = spec.metrics[metric_index], len(spec.metrics) > 1
    words = [] if run_index is None else [run.name]
    words += [metric.partition("/")[2]] if has_several else []
    color = metric_index if run_index is None else run_index
    faint = run_index is not None and has_several and metric_index == 1
    # A policy that equals its reference has no reward accuracy.
    skips_start = metric == "rewards/accuracies" and run.before is not None and run.before.is_reference
    train_lines = [*run.train_metrics, *(line for line in run.rollout_metrics if "loss" not in line)]
    train_lines.sort(key=lambda line: line["step"])
    for split, lines in (("train", train_lines), ("held out", run.eval_metrics)):
        points = [
            (line["step"], line[metric])
            for line in lines
            if line.get(metric) is not None and math.isfinite(line[metric]) and not (skips_start and line["step"] == 0)
        ]
        if points:
            dashed = split == "held out"
            label = " ".join([*words, split])
            yield Series(label, _thin(points, MAX_CURVE_POINTS), color, dashed=dashed, faint=faint, cross=faint)


def _memory_limits(runs: Sequence[RunStatistics]) -> Iterator[Series]:
    for i, run in enumerate(runs):
        limit, steps = run.metadata.get("memory_limit"), [line["step"] for line in run.train_metrics]
        if limit and steps:
            label, color = ("limit", 1) if len(runs) == 1 else (f"{run.name} limit", i)
            yield Series(label, [(step, limit / 1e9) for step in (steps[0], steps[-1])], color, dashed=True)


def _reward_kl(runs: Sequence[RunStatistics]) -> Chart:
    """How much margin a run gained for how much KL (Gao et al. 2022, arXiv 2210.10760)."""
    series = []
    for i, run in enumerate(runs):
        points = [
            (record.kl_per_token, reward, f"step {record.step}")
            for record in run.eval_records
            if record.kl_per_token is not None and (reward := _mean_reward(record)) is not None
        ]
        series.append(Series(run.name, points, i))
    description = (
        "One point per evaluation. If the path bends down, training went too far. KL(policy || reference) of the "
        "next-token distributions over held-out completions."
    )
    is_paired = all(record.is_paired for run in runs for record in run.eval_records)
    y_label = "reward margin" if is_paired else "reward of desirable completions"
    x_label = "KL to the reference, nats per token"
    return Chart("reward_kl", "Reward against KL", "path", x_label, y_label, series, description)


def _mean_reward(record: EvalRecord) -> float | None:
    values = record.margins if record.is_paired else record.metrics["rewards/chosen"]
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _pair_charts(runs: Sequence[RunStatistics]) -> Iterator[Chart]:
    paired = [run for run in runs if run.after is not None and run.after.is_paired]
    if not paired:
        return
    yield _histogram(
        Chart(
            "margins",
            "Log-prob margins, held out",
            "bar",
            "nats",
            "pairs",
            [],
            "log p(chosen) - log p(rejected). Right of 0, the chosen completion is the more likely one.",
        ),
        paired,
        lambda record: None if record.logps is None else record.logp_margins,
    )
    yield _histogram(
        Chart(
            "reward_margins",
            "Reward margins, held out",
            "bar",
            "reward" if _are_reward_models(paired) else "beta x nats",
            "pairs",
            [],
            "Left of 0, the rejected completion has the higher reward."
            if _are_reward_models(paired)
            else "Change of each pair by training. Left of 0, the rejected completion gained more.",
        ),
        paired,
        lambda record: None if record.is_reference else record.margins,
    )
    if len(runs) == 1 and paired[0].after is not None:
        yield _length_chart(paired[0].after)


def _histogram(
    chart: Chart, runs: Sequence[RunStatistics], values_of: Callable[[EvalRecord], np.ndarray | None]
) -> Chart:
    """The chart with the values before and after training of one run, or after training of several runs."""
    labelled: list[tuple[str, np.ndarray, int]] = []
    for i, run in enumerate(runs):
        for label, record, color in (("before", run.before, 1), ("after", run.after, 0)):
            values = None if record is None else values_of(record)
            if values is None:
                continue
            if len(runs) == 1:
                labelled.append((label, values, color))
            elif label == "after":
                labelled.append((f"{run.name} {label}", values, i))
    if not labelled:
        return chart
    edges = np.histogram_bin_edges(np.concatenate([values for _, values, _ in labelled]), HISTOGRAM_BINS)
    centers = ((edges[:-1] + edges[1:]) / 2).tolist()
    for label, values, color in labelled:
        counts = np.histogram(values, edges)[0].tolist()
        chart.series.append(Series(label, list(zip(centers, counts, strict=True)), color))
    return chart


def _length_chart(after: EvalRecord) -> Chart:
    series = []
    for i, name in enumerate(("chosen", "rejected")):
        points = list(zip(after.lengths[:, i].tolist(), after.metrics[f"rewards/{name}"].tolist(), strict=True))
        series.append(Series(name, _thin(points, MAX_SCATTER_POINTS), i, cross=i == 1))
    description = "Each held-out completion. A trend means that the reward depends on length."
    return Chart("lengths", "Length against reward", "scatter", "tokens", "reward after", series, description)


def _thin(points: Sequence[tuple[Any, ...]], limit: int) -> list[tuple[Any, ...]]:
    """At most `limit` points, evenly chosen, with the first and the last."""
    if len(points) <= limit:
        return list(points)
    return [points[i] for i in np.unique(np.linspace(0, len(points) - 1, limit).round().astype(int))]
