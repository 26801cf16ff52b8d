"""report.html: a run on one page that opens offline. Numbers in tables; everything from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from mlx_dpo.config import read_yaml
from mlx_dpo.reporting.metrics_log import read_metrics
from mlx_dpo.training.listener import Metrics

FILE = "report.html"
_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin-bottom: 2rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
th { text-align: left; } td { text-align: right; } td:first-child { text-align: left; }
"""


def write_report(run: Path) -> Path:
    """Write a run's page from its metrics.jsonl and config.yaml."""
    lines = read_metrics(run)
    config = read_yaml(run / "config.yaml")
    evaluations = [line for line in lines if "eval_loss" in line]
    reports = [line for line in lines if "loss" in line]
    body = [
        f"<h1>{escape(run.resolve().name)}</h1>",
        f"<p>{escape(str(config['loss']))} on {escape(str(config['data']) or 'rows in memory')}, "
        f"starting from {escape(str(config['model']) or 'a model in memory')}.</p>",
        *_section("Held-out pairs", _by_step(evaluations)),
        *_section("Training", _by_step(reports)),
        *_section("Config", [("knob", "value"), *config.items()]),
    ]
    page = "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
    page += "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
    page += f"<title>{escape(run.resolve().name)}: mlx-dpo</title>\n<style>{_STYLE}</style>\n" + "\n".join(body)
    file = run / FILE
    file.write_text(page + "\n</html>\n", encoding="utf-8")
    return file


def _by_step(lines: Sequence[Metrics]) -> list[Iterable[object]]:
    if not lines:
        return []
    return [lines[0].keys(), *(line.values() for line in lines)]


def _section(title: str, rows: Sequence[Iterable[object]]) -> list[str]:
    """A table under a heading; its first row is the column names."""
    if not rows:
        return []
    head, *rest = rows
    return [
        f"<h2>{escape(title)}</h2>",
        "<div><table>",
        f"<tr>{''.join(f'<th>{_cell(name)}</th>' for name in head)}</tr>",
        *(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rest),
        "</table></div>",
    ]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
