"""report.html: runs on one page that opens offline, with its charts' library inside and no request leaving it.

Everything that comes from outside is escaped; a Content-Security-Policy lets run only the scripts that are part of it.
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
from mlx_dpo.reporting.evaluation_records import write_whole
from mlx_dpo.reporting.report_sections import changes_table, headline, run_sections
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.training.listener import Listener, Metrics, RunPlan

REPORT_FILE = "report.html"
RELOAD_SECONDS = 15  # seconds after which a live page reads itself again
SCRIPTS = ("vendor/chart-4.6.1.umd.min.js", "charts.js")


def write_report(run: Path, *, live: bool = False) -> Path:
    """Write a run's page into its folder; a live one reads itself again every few seconds. Raises `UserError`."""
    file = run / REPORT_FILE
    write_whole(file, render_report([RunStatistics.read(run)], live=live))
    return file


class LiveReport(Listener):
    """Writes the page at every report and evaluation; comes after the listeners that write the numbers down."""

    def on_run_start(self, plan: RunPlan) -> None:
        self.run = plan.run
        write_report(self.run, live=True)

    def on_metrics(self, metrics: Metrics) -> None:
        write_report(self.run, live=True)

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        write_report(self.run, live=True)


def render_report(runs: Sequence[RunStatistics], *, live: bool = False) -> str:
    """The page of some runs; several are overlaid in its charts."""
    title = escape(" and ".join(run.name for run in runs))
    shown, scripts = build_charts(runs), [_asset(name) for name in SCRIPTS]
    body = [
        f"<h1>{title}</h1>",
        *(part for run in runs for part in headline(run, show_name=len(runs) > 1)),
        *changes_table(runs),
        *_charts(shown),
        *(part for run in runs for part in run_sections(run, show_name=len(runs) > 1)),
    ]
    told = json.dumps({chart.name: chart.to_mapping() for chart in shown}).replace("<", "\\u003c")
    return "\n".join([*_head(title, scripts, live), *body, *_tail(told, scripts)])


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
    yield f"<style>\n{_asset('page.css')}</style>"
    yield "</head>"
    yield "<body>"


def _tail(told: str, scripts: Sequence[str]) -> Iterator[str]:
    yield f"<script type=application/json id=charts>{told}</script>"
    for script in scripts:
        yield f"<script>{script}</script>"
    yield "</body>"
    yield "</html>"
    yield ""


def _charts(shown: Sequence[Chart]) -> Iterator[str]:
    if not shown:
        return
    yield "<h2>Charts</h2>"
    yield "<p class=faint>Solid: training batches, mean since the last report. Dashed: held-out examples.</p>"
    yield "<div class=charts>"
    yield from map(_figure, shown)
    yield "</div>"


def _figure(chart: Chart) -> str:
    title, meaning = escape(chart.title), escape(chart.description)
    said = f"<figcaption>{meaning}</figcaption>" if meaning else ""
    canvas = f"<div class=plot><canvas role=img aria-label='{title}'></canvas></div>"
    return f"<figure data-chart={escape(chart.name)}><h3>{title}</h3>{canvas}{said}</figure>"


def _asset(name: str) -> str:
    text = (files("mlx_dpo.reporting") / "assets" / name).read_text(encoding="utf-8")
    return text.partition("//# sourceMappingURL")[0]  # a debugger would ask the network for it


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
