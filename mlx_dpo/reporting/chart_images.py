"""The page's charts as pictures, for papers and cards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError
from mlx_dpo.reporting.charts import Chart, Series, build_charts
from mlx_dpo.reporting.run_statistics import RunStatistics

PLOTS_FOLDER = "plots"
IMAGE_FORMATS = ("png", "svg", "pdf")
WIDTH, HEIGHT, DPI = 3.4, 2.4, 200  # inches: a column of a two-column paper


def parse_image_formats(text: str | None) -> list[str]:
    """What --plots asks for: png,svg. Raises `UserError`, also where matplotlib is missing."""
    kinds = [kind.strip() for kind in (text or "").split(",") if kind.strip()]
    for kind in kinds:
        if kind not in IMAGE_FORMATS:
            raise UserError(f"{kind!r} is not one of {', '.join(IMAGE_FORMATS)}", field="plots")
    if kinds:
        _matplotlib()
    return kinds


def write_chart_images(runs: Sequence[RunStatistics], folder: Path, formats: Sequence[str]) -> list[Path]:
    """One picture a chart and kind, and the charts of a run's course together as `curves`."""
    if not formats:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    pyplot, shown, written = _matplotlib(), build_charts(runs), []
    for name, some in [("curves", shown[:4]), *((chart.name, [chart]) for chart in shown)]:
        columns = min(2, len(some))
        rows = -(-len(some) // columns)
        with pyplot.rc_context({"font.size": 8, "svg.hashsalt": "mlx-dpo", "axes.spines.top": False}):
            figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH * columns, HEIGHT * rows), squeeze=False)
            for axis in axes.flat[len(some) :]:
                axis.set_axis_off()
            for axis, chart in zip(axes.flat, some, strict=False):
                _draw(axis, chart)
            figure.tight_layout()
            for kind in formats:
                file = folder / f"{name}.{kind}"
                figure.savefig(file, dpi=DPI)
                written.append(file)
            pyplot.close(figure)
    return written


def _draw(axis: Any, chart: Chart) -> None:
    for one in chart.series:
        _draw_series(axis, chart, one)
    axis.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axis.spines["right"].set_visible(False)
    if len(chart.series) > 1:
        axis.legend(frameon=False, fontsize=6)


def _draw_series(axis: Any, chart: Chart, one: Series) -> None:
    xs, ys = [point[0] for point in one.points], [point[1] for point in one.points]
    color = f"C{one.color}"
    if chart.kind == "bar":
        width = xs[1] - xs[0] if len(xs) > 1 else 1
        axis.bar(xs, ys, width=width, color=color, alpha=0.6, label=one.label)
    elif chart.kind == "scatter":
        axis.scatter(xs, ys, s=6, color=color, marker="x" if one.cross else "o", linewidths=0.7, label=one.label)
    else:
        line = "--" if one.dashed else "-"
        marker = "o" if one.dashed or chart.kind == "path" or len(xs) == 1 else None
        alpha = 0.5 if one.faint else 1
        axis.plot(xs, ys, line, color=color, marker=marker, markersize=3, linewidth=1.2, alpha=alpha, label=one.label)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        hint = "pip install 'mlx-dpo[plots]', or leave --plots out: report.html needs nothing."
        raise UserError("pictures are drawn by matplotlib, which is not installed", field="plots", hint=hint) from None
    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
