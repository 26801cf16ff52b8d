"""rounds.html in a real Chromium: every round's numbers are drawn, nothing is requested, text is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_dpo.rounds.round_evaluation import AnswerSet
from mlx_dpo.rounds.rounds_page import render_rounds, verdict_on_rounds
from mlx_dpo.rounds.rounds_result import RoundsResult
from tests.browser import Browser

HOSTILE = "<script>alert(1)</script><b title='x'>&amp;"
DRAWN = """() => Object.fromEntries(Object.entries(window.charts).map(([name, chart]) =>
  [name, chart.data.datasets.map((set) => set.data.map(({x, y}) => [x, y]))]))"""


def results(number: int) -> dict[str, Any]:
    win = {"win_rate": (5 + number) / 10, "win_rate_interval": [(4 + number) / 10, (6 + number) / 10]}
    win["length_controlled_win_rate"] = 0.5
    labels = {"pairs": 100 * number, "prompts_without_pair": 3, "no_verdict": 0, "longer_preferred": 0.5}
    samples = {"mean_tokens": 10.0 + number, "distinct": 0.9}
    held_out = {"pairs": 8, "rewards/accuracies": (80 + number) / 100}
    scores = {"own": float(number), "start": 0.0}
    evaluation = {"against_start": win, "against_previous": win, "mean_score": scores, "held_out": held_out}
    return {"round": number, "samples": samples, "labels": labels, **evaluation}


def test_every_round_is_drawn_and_text_is_text(browser: Browser, tmp_path: Path) -> None:
    rounds = [results(number) for number in (1, 2, 3)]
    result = RoundsResult(rounds, 3, tmp_path, f"it is {HOSTILE}", tmp_path / "rounds.html")
    answers = [AnswerSet([HOSTILE], [f"{HOSTILE} {number}"]) for number in range(4)]
    result.page.write_text(render_rounds(f"Rounds {HOSTILE}", f"judge {HOSTILE}", result, answers))
    opened = browser.open(result.page)
    assert opened.errors == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [result.page.resolve().as_uri()]
    drawn = opened.page.evaluate(DRAWN)
    assert drawn["start"] == [[[n, (5 + shift + n) / 10] for n in (1, 2, 3)] for shift in (0, -1, 1)]
    assert drawn["previous"][0] == [[2, 0.7], [3, 0.8]] and drawn["held_out"] == [[[1, 0.81], [2, 0.82], [3, 0.83]]]
    assert {"score", "length", "distinct", "longer"} <= drawn.keys()
    text = opened.page.inner_text("body")
    assert text.count(HOSTILE) >= 8 and "80.0% (70.0% to 90.0%)" in text and "Round 3 is best" in text
    opened.page.close()


def test_the_verdict_without_results(tmp_path: Path) -> None:
    assert verdict_on_rounds(RoundsResult([], None, None, None, tmp_path)) == "No round is finished yet."
    alone = results(1)
    alone["against_start"] = {"win_rate": None, "win_rate_interval": [None, None]}
    assert "an unknown share" in verdict_on_rounds(RoundsResult([alone], 1, tmp_path, None, tmp_path))
