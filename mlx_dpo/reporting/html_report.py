"""report.html: runs on one page that works offline, since the chart library is part of it.

All text from rows, models and configs is escaped, and a Content-Security-Policy allows no scripts but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from mlx_dpo.reporting.charts import Chart, build_charts
from mlx_dpo.reporting.evaluation_records import write_text_atomically
from mlx_dpo.reporting.report_sections import changes_table, headline, run_sections
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.training.events import Metrics, RunPlan
from mlx_dpo.training.listener import Listener

REPORT_FILE = "report.html"
RELOAD_SECONDS = 15  # after which a live page reloads itself
SCRIPTS = ("vendor/chart-4.6.1.umd.min.js", "charts.js")


def write_report(run: Path, *, live: bool = False) -> Path:
    """Write a run's page into its folder and return its path.

    Args:
        run: the run's folder.
        live: make a page that reloads itself every few seconds.

    Raises:
        UserError: the folder holds no run.
    """
    file = run / REPORT_FILE
    write_text_atomically(file, render_report([RunStatistics.read(run)], live=live))
    return file


class LiveReport(Listener):
    """Rewrites the page after each report and evaluation. Listeners that record numbers must come before it."""

    def on_run_start(self, plan: RunPlan) -> None:
        """Write the page."""
        self.run = plan.run
        write_report(self.run, live=True)

    def on_metrics(self, metrics: Metrics) -> None:
        """Rewrite the page."""
        write_report(self.run, live=True)

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        """Rewrite the page."""
        write_report(self.run, live=True)


def render_report(runs: Sequence[RunStatistics], *, live: bool = False) -> str:
    """Render the page of one run, or of several, overlaid in the charts.

    Args:
        runs: the runs.
        live: make a page that reloads itself every few seconds.

    Returns:
        HTML.
    """
    show_name = len(runs) > 1
    return render_page(
        " and ".join(run.name for run in runs),
        [*(part for run in runs for part in headline(run, show_name=show_name)), *changes_table(runs)],
        build_charts(runs),
        "Solid: training batches, averaged since the last report. Dashed: held-out examples.",
        [part for run in runs for part in run_sections(run, show_name=show_name)],
        live=live,
    )


def render_page(
    title: str,
    sections_before: Sequence[str],
    charts: Sequence[Chart],
    chart_note: str,
    sections_after: Sequence[str],
    *,
    live: bool = False,
) -> str:
    """Render a page that works offline.

    Args:
        title: its heading, as text.
        sections_before: HTML before the charts.
        charts: the charts.
        chart_note: how to read all charts, as text.
        sections_after: HTML after them.
        live: make a page that reloads itself every few seconds.

    Returns:
        HTML.
    """
    title, scripts = escape(title), [report_asset(name) for name in SCRIPTS]
    body = [f"<h1>{title}</h1>", *sections_before, *_chart_figures(charts, chart_note), *sections_after]
    chart_data = json.dumps({chart.name: chart.to_mapping() for chart in charts}).replace("<", "\\u003c")
    return "\n".join([*_head(title, scripts, live), *body, *_scripts(chart_data, scripts)])


def _head(title: str, scripts: Sequence[str], live: bool) -> Iterator[str]:
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; form-action 'none'"
    yield "<!doctype html>"
    yield "<html lang=en>"
    yield "<head>"
    yield "<meta charset=utf-8>"
    yield f'<meta http-equiv=Content-Security-Policy content="{policy}">'
    if live:
        yield f"<meta http-equiv=refresh content={RELOAD_SECONDS}>"
    yield "<meta name=viewport content='width=device-width, initial-scale=1'>"
    yield "<link rel=icon href='data:,'>"
    yield f"<title>{title}: mlx-dpo</title>"
    yield f"<style>\n{report_asset('page.css')}</style>"
    yield "</head>"
    yield "<body>"


def _scripts(chart_data: str, scripts: Sequence[str]) -> Iterator[str]:
    yield f"<script type=application/json id=charts>{chart_data}</script>"
    for script in scripts:
        yield f"<script>{script}</script>"
    yield "</body>"
    yield "</html>"
    yield ""


def _chart_figures(charts: Sequence[Chart], note: str) -> Iterator[str]:
    if not charts:
        return
    yield "<h2>Charts</h2>"
    yield f"<p class=faint>{escape(note)}</p>"
    yield "<div class=charts>"
    yield from map(_figure, charts)
    yield "</div>"


def _figure(chart: Chart) -> str:
    title, description = escape(chart.title), escape(chart.description)
    caption = f"<figcaption>{description}</figcaption>" if description else ""
    canvas = f"<div class=plot><canvas role=img aria-label='{title}'></canvas></div>"
    return f"<figure data-chart={escape(chart.name)}><h3>{title}</h3>{canvas}{caption}</figure>"


def report_asset(name: str) -> str:
    """The text of a file in assets/, such as one of `SCRIPTS`."""
    text = (files("mlx_dpo.reporting") / "assets" / name).read_text(encoding="utf-8")
    return text.partition("//# sourceMappingURL")[0]  # a debugger would request it from the network


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
