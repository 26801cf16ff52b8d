"""The terminal: sparklines, time left, plain lines, quiet."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mlx_dpo.reporting.terminal_progress import TerminalProgress, sparkline
from mlx_dpo.reporting.time_estimate import TimeEstimator
from mlx_dpo.training.listener import RunPlan


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.5, 1.0], 0, 1) == "▅█"
    assert sparkline([3, 3, 3]) == "▁▁▁" and sparkline([]) == "" and sparkline([float("nan")]) == ""
    assert sparkline(list(range(1000)), width=8) == "▁▂▃▄▅▆▇█"


def plan(steps: int, **facts: int) -> RunPlan:
    settings = {"first_step": 0, "steps_per_epoch": steps, "steps_per_eval": 0, "memory_limit": 8_000_000_000, **facts}
    return RunPlan(
        run=Path("run"),
        steps=steps,
        num_examples={"train": 800, "held_out": 64},
        example_kind="pairs",
        trainable_parameters=1000,
        total_parameters=10_000,
        **settings,
    )


class Simulated:
    """A run whose steps and evaluations take as long as on a real model, with noise, by a simulated clock."""

    def __init__(self, plan: RunPlan, seed: int, *, reference: float, evaluation: float, sampling: float) -> None:
        self.plan, self.reference, self.evaluation, self.sampling = plan, reference, evaluation, sampling
        self.time = self.known = 0.0
        self.noise = np.random.default_rng(seed)
        self.clock = TimeEstimator(plan, lambda: self.time)
        self.estimates: dict[int, float] = {}
        self.at: dict[int, float] = {}

    def _takes(self, seconds: float) -> float:
        took = seconds * self.noise.uniform(0.7, 1.3)
        self.time += took
        return took

    def run(self) -> None:
        known, sampling = self._takes(self.evaluation * 0.5), self._takes(self.sampling)
        self._takes(self.evaluation)
        self.clock.record_evaluation(known, sampling)
        for step in range(1, self.plan.steps + 1):
            self._takes(3.0 if step == 1 else 1.0)
            if step <= self.plan.steps_per_epoch:
                self.known += self._takes(self.reference)
            self.clock.record_step(step, self.known)
            self.estimates[step], self.at[step] = self.clock.remaining_seconds() or 0.0, self.time
            last, every = step == self.plan.steps, self.plan.steps_per_eval
            if last or (every and step % every == 0):
                self._takes(self.evaluation)
                self.clock.record_evaluation(0.0, self._takes(self.sampling) if last else 0.0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("run", "parts"),
    [
        (plan(100), {"reference": 0.4, "evaluation": 0.0, "sampling": 0.0}),
        (plan(300, steps_per_epoch=100), {"reference": 0.4, "evaluation": 6.0, "sampling": 10.0}),
        (plan(200, steps_per_epoch=100, steps_per_eval=20), {"reference": 0.4, "evaluation": 6.0, "sampling": 10.0}),
        (plan(100, steps_per_eval=50), {"reference": 0.0, "evaluation": 10.0, "sampling": 5.0}),
    ],
    ids=["one epoch", "three epochs", "many evaluations", "reference cached"],
)
def test_time_left_is_right_within_20_percent_after_the_first_tenth(
    run: RunPlan, parts: dict[str, float], seed: int
) -> None:
    simulated = Simulated(run, seed, **parts)
    simulated.run()
    for step in range(run.steps // 10, run.steps * 9 // 10):
        truth = simulated.time - simulated.at[step]
        assert simulated.estimates[step] == pytest.approx(truth, rel=0.2), step


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    terminal = TerminalProgress(Console(file=out, width=200))
    _play(terminal)
    lines = out.getvalue().splitlines()
    assert lines[-1].startswith("step 2/4  loss 0.5000  accuracy 75%  margin +0.250  3 pairs/s  ")
    assert "1.50 of 8.0 GB" in lines[-1] and lines[-1].endswith("left")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_shows_sparklines_and_memory_against_its_limit() -> None:
    out = io.StringIO()
    terminal = TerminalProgress(Console(file=out, width=120, force_terminal=True))
    _play(terminal)
    shown = out.getvalue()
    assert "margin    ▁█ +0.250" in shown and "accuracy  ▅▇" in shown and "of 8.0 GB" in shown


def _play(terminal: TerminalProgress) -> None:
    terminal.on_run_start(plan(4))
    spent = {"peak_memory_gb": 1.5, "reference_seconds": 0.1}
    terminal.on_step(1, {"loss": 0.69, "rewards/margins": 0.0, "rewards/accuracies": 0.5, **spent})
    report = {"step": 2, "loss": 0.5, "rewards/margins": 0.25, "rewards/accuracies": 0.75, "pairs_per_second": 3.0}
    terminal.on_step(2, {**report, **spent})
    terminal.on_metrics(report)
    terminal.on_run_end()
