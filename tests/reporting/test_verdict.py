"""The sentences at the top of the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlx_dpo.reporting.diagnostics_listener import diagnose
from mlx_dpo.reporting.metric_changes import compute_changes
from mlx_dpo.reporting.metric_intervals import Estimate
from mlx_dpo.reporting.run_statistics import EvalRecord, RunStatistics
from mlx_dpo.reporting.verdict import explain_falling_rewards, format_interval, format_p_value, verdict

PAIRS = 40


def eval_record(step: int, chosen: float, rejected: float, spread: float = 0.1) -> EvalRecord:
    """An evaluation with these mean rewards at beta 0.1, of completions of 20 tokens and -30 nats."""
    noise = np.random.default_rng(step).normal(0, spread, (PAIRS, 2)) if step else np.zeros((PAIRS, 2))
    rewards = np.array([chosen, rejected]) + noise
    logps = -30 + rewards / 0.1 + np.array([0.0, 1.0])
    metrics = {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": rewards[:, 0] - rewards[:, 1],
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[:, 1],
    }
    return EvalRecord(step, metrics, np.full((PAIRS, 2), 20), logps, None)


def run(chosen: float, rejected: float, spread: float = 0.1) -> RunStatistics:
    records = [eval_record(0, 0, 0), eval_record(50, chosen, rejected, spread)]
    return RunStatistics(
        Path("a"), {"reference": "initial"}, [], [{"step": 0}, {"step": 50}], records, metadata={"steps": 50}
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "answer"),
    [
        (0.2, -0.5, None),
        (-0.05, -0.5, "This is expected: the loss only requires the reward of the chosen completion to fall less"),
        (-0.9, -2.0, "The order is right, but the chosen completions lost"),
        (-2.0, -0.9, "This is wrong: the chosen ones fell further"),
    ],
)
def test_falling_rewards_are_explained(chosen: float, rejected: float, answer: str | None) -> None:
    statistics = run(chosen, rejected)
    explanation = explain_falling_rewards(statistics, diagnose(statistics))
    assert explanation is None if answer is None else explanation is not None and answer in explanation


def test_imitation_is_not_expected_to_learn_a_preference() -> None:
    """As seen on a real model: SFT on the chosen completions makes both more likely, and ranks pairs at chance."""
    dpo = run(0.5, 0.5)
    assert "chance" in {finding.diagnostic for finding in diagnose(dpo)}
    for loss in ("sft", "sft=0.5"):
        sft = replace(dpo, config={"reference": "initial", "loss": loss})
        assert diagnose(sft) == []
        text = verdict(sft, compute_changes(sft), [])
        assert text.startswith("After 50 steps, the chosen held-out completions are more likely: perplexity 4.48 to")
    mixed = replace(dpo, config={"reference": "initial", "loss": "sigmoid,sft"})
    assert "chance" in {finding.diagnostic for finding in diagnose(mixed)}


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "1 held-out pair can't show a significant change: reward margin"),
        (5, "5 held-out pairs can't show a significant change: reward margin"),
        (6, "the policy prefers the chosen completions of held-out pairs more than before"),
    ],
)
def test_too_few_pairs_for_a_test(count: int, words: str) -> None:
    statistics = run(0.5, -0.5)
    few = [
        replace(
            record,
            metrics={name: values[:count] for name, values in record.metrics.items()},
            lengths=record.lengths[:count],
            logps=record.require_logps()[:count],
        )
        for record in statistics.eval_records
    ]
    statistics = replace(statistics, eval_records=few)
    assert verdict(statistics, compute_changes(statistics), []).startswith(f"After 50 steps, {words}")


def test_verdicts() -> None:
    def verdict_of(statistics: RunStatistics) -> str:
        return verdict(statistics, compute_changes(statistics), diagnose(statistics))

    assert verdict_of(run(0.3, -0.5)).startswith(
        "After 50 steps, the policy prefers the chosen completions of held-out pairs more than before: "
        "reward margin +0.8"
    )
    assert verdict_of(run(0.3, -0.5)).endswith("Nothing looks wrong.")
    assert "prefers the chosen completions of held-out pairs less than before" in verdict_of(run(-0.5, 0.3))
    assert "show no significant change" in verdict_of(run(0.0, 0.0, spread=0.3))


def test_numbers_for_people() -> None:
    assert format_interval(Estimate(-0.0001, -0.0002, 0.0, 9), "{:.3f}") == "0.000 [0.000, 0.000]"
    assert format_interval(None, "{:.3f}") == "-"
    assert (format_p_value(0.0001), format_p_value(0.032), format_p_value(0.5), format_p_value(None)) == (
        "p < 0.001",
        "p = 0.032",
        "p = 0.50",
        "",
    )
