"""What the page's charts show: series of points, for assets/charts.js to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.reporting.run_statistics import EvalRecord, RunStatistics
from mlx_dpo.training.listener import Metrics

MAX_CURVE_POINTS = 400  # of a curve; of more, an even share, the last among them
MAX_SCATTER_POINTS = 1_500  # of a cloud
HISTOGRAM_BINS = 24


@dataclass(frozen=True)
class Series:
    """One line, cloud or histogram.

    Attributes:
        points: (x, y), or (x, y, what a tip says of it).
        color: its number among the page's colours.
        dashed, faint, cross: how it is drawn.
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
        kind: "line", "scatter", "path" or "bar".
        x, y: what is along the axes.
        meaning: what to read from it, in a sentence; empty where the title says it.
    """

    name: str
    title: str
    kind: str
    x_label: str
    y_label: str
    series: list[Series]
    description: str = ""

    def to_mapping(self) -> dict[str, Any]:
        """As plain values, for the page."""
        return {"type": self.kind, "x": self.x_label, "y": self.y_label, "series": [vars(one) for one in self.series]}


# name, title, what is along y, metrics (of several, each in its own colour where there is one run), what to read
CURVES: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("loss", "Loss", "", ("loss",), ""),
    (
        "rewards",
        "Rewards",
        "beta x nats",
        ("rewards/chosen", "rewards/rejected"),
        "Both may fall, and the chosen one less: that is how DPO often goes. What counts is the margin, and that the "
        "chosen answers stay likely.",
    ),
    ("margin", "Reward margin", "beta x nats", ("rewards/margins",), ""),
    ("accuracy", "Reward accuracy", "share of pairs", ("rewards/accuracies",), ""),
    (
        "logps",
        "Log-probs of the answers",
        "nats",
        ("logps/chosen", "logps/rejected"),
        "Summed over an answer's tokens.",
    ),
    ("grad_norm", "Gradient norm", "before clipping", ("grad_norm",), ""),
    ("learning_rate", "Learning rate", "", ("learning_rate",), ""),
    ("memory", "Peak memory", "GB", ("peak_memory_gb",), ""),
    ("speed", "Speed", "pairs a second", ("pairs_per_second",), ""),
)


def build_charts(runs: Sequence[RunStatistics]) -> list[Chart]:
    """All charts that the runs have numbers for."""
    return [chart for chart in (*_curves(runs), *_of_moments(runs)) if any(one.points for one in chart.series)]


def _curves(runs: Sequence[RunStatistics]) -> Iterator[Chart]:
    for name, title, y, metrics, meaning in CURVES:
        series = [
            one
            for i, run in enumerate(runs)
            for j, metric in enumerate(metrics)
            for one in _train_and_held_out(run, metric, metrics, i, j, len(runs))
        ]
        if name == "memory":
            series += [one for i, run in enumerate(runs) for one in _limit(run, i, len(runs))]
        yield Chart(name, title, "line", "step", y, series, meaning)


def _train_and_held_out(
    run: RunStatistics, metric: str, metrics: tuple[str, ...], i: int, j: int, runs: int
) -> Iterator[Series]:
    """A metric's curve over training batches and over held-out examples, dashed; of several runs a colour each."""
    several = len(metrics) > 1
    part = [metric.partition("/")[2]] if several else []
    color = i if runs > 1 else j
    for which, lines in (("train", run.train_metrics), ("held out", run.eval_metrics)):
        label = " ".join([*([run.name] if runs > 1 else []), *part, which])
        points = _thin(_points(lines, metric, _skip_start(run, metric)))
        faint = runs > 1 and several and j == 1
        if points:
            yield Series(label, points, color, dashed=which == "held out", faint=faint, cross=faint)


def _skip_start(run: RunStatistics, metric: str) -> Callable[[Metrics], bool]:
    """A policy that is its reference has no reward accuracy."""
    unmoved = metric == "rewards/accuracies" and run.before is not None and run.before.is_reference
    return lambda line: unmoved and line["step"] == 0


def _points(lines: Sequence[Metrics], metric: str, skip: Callable[[Metrics], bool]) -> list[tuple[float, float]]:
    return [
        (line["step"], line[metric])
        for line in lines
        if line.get(metric) is not None and math.isfinite(line[metric]) and not skip(line)
    ]


def _limit(run: RunStatistics, i: int, runs: int) -> Iterator[Series]:
    limit, steps = run.metadata.get("memory_limit"), [line["step"] for line in run.train_metrics]
    if limit and steps:
        points = [(steps[0], limit / 1e9), (steps[-1], limit / 1e9)]
        yield Series(f"{run.name} limit" if runs > 1 else "limit", points, i if runs > 1 else 1, dashed=True)


def _of_moments(runs: Sequence[RunStatistics]) -> Iterator[Chart]:
    paired = [run for run in runs if run.after is not None and run.after.is_paired]
    yield _reward_kl(runs)
    if not paired:
        return
    yield _histogram(
        "margins",
        "Margins of log-probs, held out",
        "nats",
        paired,
        lambda moment: moment.logp_margins,
        "log p(chosen) - log p(rejected): right of 0 the chosen answer is the likelier one.",
    )
    yield _histogram(
        "reward_margins",
        "Reward margins, held out",
        "beta x nats",
        paired,
        lambda moment: None if moment.is_reference else moment.margins,
        "How far training moved each pair: left of 0 it went the wrong way.",
    )
    if len(runs) == 1 and paired[0].after is not None:
        yield _lengths(paired[0].after)


def _reward_kl(runs: Sequence[RunStatistics]) -> Chart:
    """Where the run went: how much margin it got for how much KL (Gao et al. 2022, arXiv 2210.10760)."""
    series = []
    for i, run in enumerate(runs):
        points = [
            (moment.kl_per_token, reward, f"step {moment.step}")
            for moment in run.eval_records
            if moment.kl_per_token is not None and (reward := _reward(moment)) is not None
        ]
        series.append(Series(run.name, points, i))
    meaning = (
        "One point an evaluation. A path that bends down has gone too far. KL is that of the next-token distributions "
        "over held-out answers."
    )
    paired = all(moment.is_paired for run in runs for moment in run.eval_records)
    y = "reward margin" if paired else "reward of wanted answers"
    return Chart("reward_kl", "Reward against KL", "path", "KL to the reference, nats a token", y, series, meaning)


def _reward(moment: EvalRecord) -> float | None:
    values = moment.margins if moment.is_paired else moment.metrics["rewards/chosen"]
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _histogram(
    name: str,
    title: str,
    x: str,
    runs: Sequence[RunStatistics],
    values: Callable[[EvalRecord], np.ndarray | None],
    meaning: str,
) -> Chart:
    sets: list[tuple[str, np.ndarray]] = []
    for run in runs:
        for when, moment in (("before", run.before), ("after", run.after)):
            found = None if moment is None else values(moment)
            if found is not None and not (when == "before" and len(runs) > 1):
                sets.append((when if len(runs) == 1 else f"{run.name} {when}", found))
    edges = (
        np.histogram_bin_edges(np.concatenate([found for _, found in sets]), HISTOGRAM_BINS) if sets else np.zeros(1)
    )
    middles = (edges[:-1] + edges[1:]) / 2
    order = {"before": 1, "after": 0}
    series = [
        Series(label, [(float(x), int(n)) for x, n in zip(middles, np.histogram(found, edges)[0], strict=True)], color)
        for i, (label, found) in enumerate(sets)
        for color in [order.get(label, i)]
    ]
    return Chart(name, title, "bar", x, "pairs", series, meaning)


def _lengths(after: EvalRecord) -> Chart:
    series = []
    for side, name in enumerate(("chosen", "rejected")):
        points = list(zip(after.lengths[:, side].tolist(), after.metrics[f"rewards/{name}"].tolist(), strict=True))
        series.append(Series(name, _thin(points, MAX_SCATTER_POINTS), side, cross=side == 1))
    meaning = "Each held-out answer. A slope means that the reward looks at length."
    return Chart("lengths", "Length against reward", "scatter", "tokens", "reward after", series, meaning)


def _thin(points: Sequence[tuple[Any, ...]], most: int = MAX_CURVE_POINTS) -> list[tuple[Any, ...]]:
    if len(points) <= most:
        return list(points)
    kept = np.unique(np.linspace(0, len(points) - 1, most).round().astype(int))
    return [points[i] for i in kept]
