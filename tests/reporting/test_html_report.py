"""The page, opened in a real Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.reporting.html_report import render_report, write_report
from mlx_dpo.reporting.metrics_log import read_metrics
from mlx_dpo.reporting.run_statistics import RunStatistics
from tests.browser import Browser
from tests.reporting.conftest import HOSTILE

# The points of every chart as the browser drew them: their data, and their positions on the canvas.
DRAWN = """() => Object.fromEntries(Object.entries(window.charts).map(([name, chart]) => [name, {
  type: chart.config.type,
  series: chart.data.datasets.map((set, i) => ({
    label: set.label,
    data: set.data.map(({x, y}) => [x, y]),
    positions: chart.getDatasetMeta(i).data.map(({x, y}) => [x, y]),
  })),
  area: [chart.chartArea.left, chart.chartArea.right, chart.chartArea.top, chart.chartArea.bottom],
  inked: new Set(chart.ctx.getImageData(0, 0, chart.canvas.width, chart.canvas.height).data).size > 8,
}]))"""


def test_it_opens_without_errors_or_requests(browser: Browser, hostile_run: Path, answers_run: Path) -> None:
    for run in (hostile_run, answers_run):
        file = run / "report.html"
        opened = browser.open(file)
        assert opened.errors == []
        assert [url for url in opened.requests if not url.startswith("data:")] == [file.resolve().as_uri()]
        assert file.stat().st_size < 2_000_000
        opened.page.close()


def test_the_page_cannot_reach_the_network(browser: Browser, hostile_run: Path) -> None:
    opened = browser.open(hostile_run / "report.html")
    tried = "() => fetch('https://example.com').then(() => 'reached', () => 'refused')"
    assert opened.page.evaluate(tried) == "refused"
    assert any("Content Security Policy" in text for text in opened.errors)
    opened.page.close()


def test_every_chart_has_its_points(browser: Browser, hostile_run: Path, answers_run: Path) -> None:
    for run in (hostile_run, answers_run):
        opened = browser.open(run / "report.html")
        drawn = opened.page.evaluate(DRAWN)
        assert len(drawn) == opened.page.locator("figure").count() >= 8
        for name, chart in drawn.items():
            _assert_drawn(name, chart)
        _assert_same_as_metrics(run, drawn)
        opened.page.close()


def _assert_drawn(name: str, chart: dict[str, Any]) -> None:
    left, right, top, bottom = chart["area"]
    assert chart["inked"], f"{name}: the canvas is blank"
    assert chart["series"] and all(series["data"] for series in chart["series"]), name
    for series in chart["series"]:
        positions = np.array(series["positions"], dtype=float)
        assert len(positions) == len(series["data"]) and np.isfinite(positions).all(), (name, series["label"])
        assert (positions[:, 1] >= top - 1).all() and (positions[:, 1] <= bottom + 1).all(), (name, series["label"])
        assert (positions[:, 0] >= left - 1).all() and (positions[:, 0] <= right + 1).all(), (name, series["label"])


def _assert_same_as_metrics(run: Path, drawn: dict[str, Any]) -> None:
    lines = read_metrics(run)
    train, held_out = (series["data"] for series in drawn["loss"]["series"])
    assert train == [[line["step"], line["loss"]] for line in lines if "loss" in line]
    assert held_out == [[line["step"], line["eval_loss"]] for line in lines if "eval_loss" in line]
    if "margins" in drawn:
        before, after = drawn["margins"]["series"]
        examples = len(RunStatistics.read(run).eval_records[0].margins)
        assert sum(y for _, y in before["data"]) == sum(y for _, y in after["data"]) == examples


def test_text_of_rows_is_text(browser: Browser, hostile_run: Path) -> None:
    opened = browser.open(hostile_run / "report.html")
    shown = opened.page.locator("body").inner_text()
    for text in HOSTILE:
        assert text.replace("\u2028", "").split("\n")[0][:20] in shown
    assert opened.page.evaluate("() => window.pwned") is None
    assert opened.page.locator("img, .answer b, h1 b").count() == 0
    assert opened.page.locator("h1").inner_text() == hostile_run.name
    opened.page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1200])
def test_it_fits_a_phone_and_follows_the_theme(browser: Browser, hostile_run: Path, width: int, theme: str) -> None:
    opened = browser.open(hostile_run / "report.html", width, theme)
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= width
    luminance = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert (sum(opened.page.evaluate(luminance)) < 200) == (theme == "dark")
    canvases = opened.page.evaluate("() => [...document.querySelectorAll('canvas')].map((c) => c.clientWidth)")
    assert min(canvases) > 250 and max(canvases) <= width
    opened.page.close()


def test_the_preference_is_shown_on_the_tokens(browser: Browser, hostile_run: Path) -> None:
    """A token's color is its log-prob after training minus that before."""
    opened = browser.open(hostile_run / "report.html")
    pair = RunStatistics.read(hostile_run).extreme_examples[0]["sides"][0]
    tokens = opened.page.locator(".two .answer").first.locator("i")
    assert tokens.count() == len(pair["pieces"])
    ratios = [float(tokens.nth(i).get_attribute("title")) for i in range(tokens.count())]
    assert ratios == pytest.approx([a - b for a, b in zip(pair["logps"], pair["before"], strict=True)], abs=1e-3)
    for i, ratio in enumerate(ratios):
        assert tokens.nth(i).get_attribute("class") in (("up", None) if ratio > 0 else ("down", None))
    opened.page.close()


def test_several_runs_are_overlaid(browser: Browser, hostile_run: Path, answers_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "both.html"
    file.write_text(render_report([RunStatistics.read(hostile_run), RunStatistics.read(answers_run)]), encoding="utf-8")
    opened = browser.open(file)
    assert opened.errors == []
    drawn = opened.page.evaluate(DRAWN)
    labels = {series["label"] for series in drawn["loss"]["series"]}
    assert labels == {f"{run.name} {what}" for run in (hostile_run, answers_run) for what in ("train", "held out")}
    assert opened.page.locator(".verdict").count() == 2
    opened.page.close()


def test_a_run_with_only_metrics_has_a_page(hostile_run: Path, tmp_path: Path) -> None:
    """A run that was trained without a recorder, and a run that has only started."""
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((hostile_run / name).read_bytes())
    assert "<figure data-chart=loss" in write_report(tmp_path).read_text()
    (tmp_path / "metrics.jsonl").unlink()
    assert "<figure data-chart=loss" not in write_report(tmp_path).read_text()


def test_a_live_page_reloads_itself(hostile_run: Path) -> None:
    run = RunStatistics.read(hostile_run)
    assert "http-equiv=refresh" in render_report([run], live=True)
    assert "http-equiv=refresh" not in render_report([run])


def test_data_in_the_page_is_json(hostile_run: Path) -> None:
    text = (hostile_run / "report.html").read_text()
    data = text.partition("<script type=application/json id=charts>")[2].partition("</script>")[0]
    assert set(json.loads(data)) >= {
        "loss",
        "rewards",
        "margin",
        "accuracy",
        "logps",
        "margins",
        "reward_kl",
        "lengths",
    }
