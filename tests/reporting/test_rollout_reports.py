"""What a report says of an on-policy run: diagnostics on made-up numbers, charts, and answers over time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_dpo.reporting.charts import build_charts
from mlx_dpo.reporting.diagnostics import DIAGNOSTICS
from mlx_dpo.reporting.diagnostics_listener import diagnose
from mlx_dpo.reporting.html_report import render_report
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.reporting.verdict import verdict
from mlx_dpo.training.events import Metrics

Curve = Callable[[float], float]  # from the share of the run that is done to the value of a metric


def report(step: int, **values: float) -> Metrics:
    return {"step": step, **{f"rollouts/{name}": value for name, value in values.items()}}


def run_of(**curves: Curve) -> RunStatistics:
    """Ten reports, healthy but for the curves that are given."""
    healthy: dict[str, Curve] = {
        "reward": lambda t: 0.5 + 0.4 * t,
        "length": lambda t: 20 + 2 * t,
        "entropy": lambda t: 0.4 - 0.2 * t,
        "kl": lambda t: 0.2 * t,
        "distinct": lambda t: 1 - 0.2 * t,
        "ties": lambda t: 0.5 + 0.49 * t,
        "longer_chosen": lambda t: 0.55,
    }
    curves = {**healthy, **curves}
    reports = [report(i, **{name: curve((i - 1) / 9) for name, curve in curves.items()}) for i in range(1, 11)]
    return RunStatistics(Path("run"), {}, [], [], rollout_metrics=reports)


def findings(run: RunStatistics) -> dict[str, str]:
    return {finding.diagnostic: finding.message for finding in diagnose(run)}


def test_a_healthy_run_has_none() -> None:
    assert findings(run_of()) == {}
    assert all(check.applies_to(run_of()) for check in DIAGNOSTICS if check.requires in ("rollouts", "verdicts"))
    assert not any(check.applies_to(run_of()) for check in DIAGNOSTICS if check.requires == "policy_gradient")
    offline = RunStatistics(Path("run"), {}, [], [])
    sampled = ("rollouts", "verdicts", "policy_gradient")
    assert not any(check.applies_to(offline) for check in DIAGNOSTICS if check.requires in sampled)


def policy_gradient_run(**curves: Curve) -> RunStatistics:
    """Ten reports of PPO, whose loss does not fall, healthy but for the curves that are given."""
    healthy: dict[str, Curve] = {
        "objective/kl": lambda t: 2 * t,
        "objective/scores": lambda t: 0.5 + 0.4 * t,
        "policy/clipfrac_avg": lambda t: 0.05,
        "loss": lambda t: 0.1,
        "rollouts/length": lambda t: 20.0,
        "rollouts/entropy": lambda t: 0.4,
    }
    curves = {**healthy, **curves}
    reports = [{"step": 10 * i, **{name: curve((i - 1) / 9) for name, curve in curves.items()}} for i in range(1, 11)]
    return RunStatistics(Path("run"), {}, reports, [], rollout_metrics=reports, metadata={"steps": 100})


@pytest.mark.parametrize(
    ("name", "curves", "words"),
    [
        ("large_policy_steps", {"policy/clipfrac_avg": lambda t: 0.3 * t}, "28% of the ratios"),
        ("far_from_reference", {"objective/kl": lambda t: 40 * t}, "38 nats; scores went from 0.522 to 0.878"),
    ],
)
def test_a_policy_gradient_that_fails_is_found(name: str, curves: dict[str, Curve], words: str) -> None:
    assert findings(policy_gradient_run()) == {}
    checks = {check.name for check in DIAGNOSTICS if check.applies_to(policy_gradient_run())}
    assert checks == {"collapsed_variety", "large_policy_steps", "far_from_reference"}
    (finding,) = findings(policy_gradient_run(**curves)).items()
    assert finding[0] == name and words in finding[1]


LONGER: dict[str, Curve] = {"length": lambda t: 20 + 30 * t, "longer_chosen": lambda t: 0.9}


@pytest.mark.parametrize(
    ("name", "curves", "words"),
    [
        ("judge_gamed_by_length", LONGER, "2.2 times as long (22 to 48 tokens)"),
        ("collapsed_variety", {"distinct": lambda t: 1 - t}, "6% of them are distinct (94% at first)"),
        ("collapsed_variety", {"entropy": lambda t: 0.4 * (1 - t)}, "0.022 nats per token (0.38 at first)"),
        ("judge_always_ties", {"ties": lambda t: 1.0, "longer_chosen": lambda t: float("nan")}, "100% of the prompts"),
    ],
)
def test_a_run_that_fails_is_found(name: str, curves: dict[str, Curve], words: str) -> None:
    (finding,) = findings(run_of(**curves)).items()
    assert finding[0] == name and words in finding[1]


@pytest.mark.parametrize(
    "curves",
    [
        {**LONGER, "longer_chosen": lambda t: 0.6},  # answers get longer, but the longer one does not win
        {**LONGER, "reward": lambda t: 0.5},  # or the judge does not reward it
        {"longer_chosen": lambda t: 0.9},  # the longer one wins, but answers stay short
        {"distinct": lambda t: 0.05},  # answers never differed: greedy sampling, or one right answer
        {"entropy": lambda t: 0.04},
        {"ties": lambda t: 0.8 + 0.2 * t},  # nothing is left to prefer only at the end
    ],
)
def test_a_run_that_only_looks_alike_is_not(curves: dict[str, Curve]) -> None:
    assert findings(run_of(**curves)) == {}


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("on_policy: true\nloss: sigmoid\nprompts: questions.txt\n")
    lines = [{**report(2, ties=1.0, reward=0.25)}, {**report(4, ties=0.5, reward=0.75), "loss": 0.6}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rollouts = [
        {
            "step": step,
            "prompt": [{"role": "user", "content": f"<b>question {step}"}],
            "completions": ["<i>worse", "better & best", "unseen"],
            "scores": [0.0, 1.0, None],
            "chosen": None if step == 1 else 1,
            "rejected": None if step == 1 else 0,
        }
        for step in range(1, 8)
    ]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rollouts))
    return folder


def test_answers_over_time_are_on_the_page(tmp_path: Path) -> None:
    run = RunStatistics.read(write_run(tmp_path / "run"))
    page = render_report([run])
    assert [f"<h3>Step {step}</h3>" in page for step in range(1, 8)] == [True, False, True, False, True, False, True]
    assert "user: &lt;b&gt;question 1" in page and "<b>question" not in page and "<i>worse" not in page
    assert "chosen, 1</small><div class=answer>better &amp; best" in page and "rejected, 0</small>" in page
    assert "answer, 0</small><div class=answer>&lt;i&gt;worse" in page, "no pair was made of the first"
    assert "unseen" not in page and "questions.txt" in page


def test_the_verdict_without_held_out_pairs(tmp_path: Path) -> None:
    run = RunStatistics.read(write_run(tmp_path / "run"))
    words = "4 steps done; the judge's reward of sampled answers went from 0.25 to 0.75. Nothing looks wrong."
    assert verdict(run, [], []) == words


def test_steps_without_a_pair_are_in_the_charts(tmp_path: Path) -> None:
    run = RunStatistics.read(write_run(tmp_path / "run"))
    assert run.step == 4 and len(run.train_metrics) == 1
    charts = {chart.name: chart for chart in build_charts([run])}
    assert list(charts["judge_reward"].series[0].points) == [(2, 0.25), (4, 0.75)]
    assert list(charts["loss"].series[0].points) == [(4, 0.6)]
