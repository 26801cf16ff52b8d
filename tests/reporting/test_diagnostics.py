"""Each diagnostic finds a run made to fail that way, and none applies to a healthy run."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.reporting.diagnostics import DIAGNOSTICS, estimate_flipped_share
from mlx_dpo.reporting.diagnostics_listener import diagnose
from mlx_dpo.reporting.run_statistics import RunStatistics
from tests.reporting.conftest import WORDS, FindingCollector, pairs, record

Rows = list[dict[str, Any]]
HELD_OUT = 32
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL0123456789"


def flipped(rows: Rows, share: float) -> Rows:
    """The rows, with chosen and rejected of the first of them swapped."""
    last = round(share * len(rows))
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:last]]
    return swapped + rows[last:]


def longer_chosen(count: int, seed: int) -> Rows:
    """Pairs of the same words whose chosen completion is the longer one."""
    draw = random.Random(seed)
    lengths = [(draw.randint(6, 12), draw.randint(1, 5)) for _ in range(count)]
    answers = [[" ".join(draw.choices(WORDS, k=n)) for n in both] for both in lengths]
    return [{"prompt": "go", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]


def without_a_pattern(count: int, seed: int) -> Rows:
    """Pairs whose chosen completions have nothing in common to learn; the rejected ones are all equal."""
    draw = random.Random(seed)
    return [
        row | {"chosen": "".join(draw.choices(LETTERS, k=12))} for row in pairs(count, seed, "", "no no no no no no")
    ]


@dataclass(frozen=True)
class Case:
    """The data and settings of a run; the shares are of flipped pairs."""

    rows: Callable[[int, int], Rows] = pairs
    trained: int = 64
    share: float = 0.0
    held_out_share: float = 0.0
    knobs: dict[str, Any] = field(default_factory=dict)


CASES = {
    "likelihood_displacement": Case(
        share=0.3, trained=40, knobs={"iters": 20, "learning_rate": 3e-2, "lr_schedule": "constant"}
    ),
    "rejected_alone": Case(without_a_pattern, knobs={"learning_rate": 5e-4}),
    "length": Case(longer_chosen, held_out_share=0.5, knobs={"iters": 6}),
    "over_optimised": Case(
        share=0.3,
        trained=20,
        knobs={"iters": 30, "learning_rate": 1e-2, "lr_schedule": "constant", "steps_per_eval": 10},
    ),
    "chance": Case(share=0.5, held_out_share=0.5, knobs={"iters": 4}),
    "standing_still": Case(knobs={"iters": 20, "learning_rate": 1e-8, "batch_size": 2}),
    "repetition": Case(
        lambda count, seed: pairs(count, seed, "x" * 24, "{}"),
        trained=32,
        knobs={"iters": 20, "learning_rate": 1e-2, "loss": "sft", "batch_size": 4},
    ),
    "label_noise": Case(share=0.15, held_out_share=0.2, trained=100),
}


def run_of(case: Case, folder: Path, collector: FindingCollector, samples: int = 0) -> RunStatistics:
    trained = flipped(case.rows(case.trained, 0), case.share)
    held_out = flipped(case.rows(HELD_OUT, 1), case.held_out_share)
    knobs = {"iters": 10, "steps_per_eval": 0, "batch_size": 8, "save_every": 0} | case.knobs
    return RunStatistics.read(record(folder, trained, held_out, collector, samples=samples, **knobs))


SAMPLED = ("rollouts", "verdicts", "policy_gradient")  # see test_rollout_reports.py


@pytest.mark.parametrize("name", [check.name for check in DIAGNOSTICS if check.requires not in SAMPLED])
def test_a_run_made_to_fail_is_found(tmp_path: Path, name: str) -> None:
    collector = FindingCollector()
    run = run_of(CASES[name], tmp_path / "run", collector, samples=6 if name == "repetition" else 0)
    findings = {finding.diagnostic: finding for finding in diagnose(run)}
    assert name in findings, findings.keys()
    assert findings[name].message.endswith(".") and findings[name].advice
    live = [finding.diagnostic for finding in collector.findings]
    assert live.count(name) == 1, "reported once while it trained"
    assert findings[name].message in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStatistics, FindingCollector]:
    collector = FindingCollector()
    return run_of(
        Case(knobs={"steps_per_eval": 5}), tmp_path_factory.mktemp("runs") / "healthy", collector, samples=4
    ), collector


def test_a_healthy_run_has_none(healthy: tuple[RunStatistics, FindingCollector]) -> None:
    run, collector = healthy
    assert diagnose(run) == [] and collector.findings == []
    assert "Nothing looks wrong." in (run.path / "report.html").read_text()


def mirrored(run: RunStatistics, share: float) -> RunStatistics:
    """The run's numbers if the labels of the first held-out pairs had been flipped."""
    after = run.eval_records[-1]
    margins = after.margins * np.where(np.arange(len(after.margins)) < share * len(after.margins), -1, 1)
    last = replace(after, metrics={**after.metrics, "rewards/margins": margins})
    return replace(run, eval_records=[*run.eval_records[:-1], last])


def test_swapped_labels_differ_from_chance(healthy: tuple[RunStatistics, FindingCollector]) -> None:
    (finding,) = [finding for finding in diagnose(mirrored(healthy[0], 1.0)) if finding.diagnostic == "chance"]
    assert "below chance" in finding.message


@pytest.mark.parametrize(("copies", "words"), [(1, "can't be distinguished from chance"), (20, "is at chance")])
def test_few_pairs_are_no_evidence_of_chance(
    healthy: tuple[RunStatistics, FindingCollector], copies: int, words: str
) -> None:
    half = mirrored(healthy[0], 0.5)
    last = half.eval_records[-1]
    metrics = {name: np.tile(values, copies) for name, values in last.metrics.items()}
    record = replace(last, metrics=metrics, lengths=np.tile(last.lengths, (copies, 1)))
    (finding,) = [
        finding for finding in diagnose(replace(half, eval_records=[record])) if finding.diagnostic == "chance"
    ]
    assert words in finding.message
    assert (f"{len(record.margins)} pairs are too few" in finding.message) == (copies == 1)


@pytest.mark.parametrize("share", [0.0, 0.125, 0.25])
def test_the_share_of_flipped_pairs_is_estimated(healthy: tuple[RunStatistics, FindingCollector], share: float) -> None:
    estimate = estimate_flipped_share(mirrored(healthy[0], share))
    assert estimate is not None and estimate.low <= share <= estimate.high
    assert abs(estimate.value - share) < 0.13
