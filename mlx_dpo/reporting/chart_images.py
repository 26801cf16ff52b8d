"""A report's charts as image files, for papers and model cards."""

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
NUM_OVERVIEW_CHARTS = 4  # the first charts are also drawn together, as "curves"


def parse_image_formats(text: str | None) -> list[str]:
    """Parse the value of --plots, such as "png,svg".

    Raises:
        UserError: a format is unknown, or matplotlib is missing.
    """
    formats = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in formats:
        if name not in IMAGE_FORMATS:
            raise UserError(f"{name!r} is not one of {', '.join(IMAGE_FORMATS)}", field="plots")
    if formats:
        _import_pyplot()
    return formats


def write_chart_images(runs: Sequence[RunStatistics], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Draw each chart into a file per format, and the first charts together as `curves`. Returns the files."""
    if not formats:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    pyplot, charts = _import_pyplot(), build_charts(runs)
    figures = {"curves": charts[:NUM_OVERVIEW_CHARTS], **{chart.name: [chart] for chart in charts}}
    files = []
    for name, figure_charts in figures.items():
        with pyplot.rc_context({"font.size": 8, "svg.hashsalt": "mlx-dpo", "axes.spines.top": False}):
            figure = _draw_figure(pyplot, figure_charts)
            for image_format in formats:
                files.append(folder / f"{name}.{image_format}")
                figure.savefig(files[-1], dpi=DPI)
            pyplot.close(figure)
    return files


def _draw_figure(pyplot: Any, charts: Sequence[Chart]) -> Any:
    columns = min(2, len(charts))
    rows = -(-len(charts) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(WIDTH * columns, HEIGHT * rows), squeeze=False)
    for axis in axes.flat[len(charts) :]:
        axis.set_axis_off()
    for axis, chart in zip(axes.flat, charts, strict=False):
        for series in chart.series:
            _draw_series(axis, chart.kind, series)
        axis.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        axis.spines["right"].set_visible(False)
        if len(chart.series) > 1:
            axis.legend(frameon=False, fontsize=6)
    figure.tight_layout()
    return figure


def _draw_series(axis: Any, kind: str, series: Series) -> None:
    xs, ys = [point[0] for point in series.points], [point[1] for point in series.points]
    style = {"color": f"C{series.color}", "label": series.label}
    if kind == "bar":
        axis.bar(xs, ys, width=xs[1] - xs[0] if len(xs) > 1 else 1, alpha=0.6, **style)
    elif kind == "scatter":
        axis.scatter(xs, ys, s=6, marker="x" if series.cross else "o", linewidths=0.7, **style)
    else:
        line = "--" if series.dashed else "-"
        marker = "o" if series.dashed or kind == "path" or len(xs) == 1 else None
        alpha = 0.5 if series.faint else 1
        axis.plot(xs, ys, line, marker=marker, markersize=3, linewidth=1.2, alpha=alpha, **style)


def _import_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        hint = "pip install 'mlx-dpo[plots]', or leave --plots out: report.html needs no matplotlib."
        raise UserError("--plots needs matplotlib, which is not installed", field="plots", hint=hint) from None
    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
