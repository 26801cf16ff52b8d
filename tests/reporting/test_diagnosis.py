"""Each fault in a run made to have it, and none in a healthy one."""

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
    """The first of them with chosen and rejected swapped."""
    last = round(share * len(rows))
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:last]]
    return swapped + rows[last:]


def of_lengths(count: int, seed: int) -> Rows:
    """Pairs of like words whose chosen answer is the longer one."""
    draw = random.Random(seed)
    lengths = [(draw.randint(6, 12), draw.randint(1, 5)) for _ in range(count)]
    answers = [[" ".join(draw.choices(WORDS, k=n)) for n in both] for both in lengths]
    return [{"prompt": "go", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]


def without_a_pattern(count: int, seed: int) -> Rows:
    """The chosen answers have nothing in common that could get likelier; the rejected ones are all the same."""
    draw = random.Random(seed)
    return [
        row | {"chosen": "".join(draw.choices(LETTERS, k=12))} for row in pairs(count, seed, "", "no no no no no no")
    ]


@dataclass(frozen=True)
class Case:
    """A run made to have a fault."""

    rows: Callable[[int, int], Rows] = pairs
    trained: int = 64
    share: float = 0.0  # of flipped pairs
    held_out_share: float = 0.0
    knobs: dict[str, Any] = field(default_factory=dict)


CASES = {
    "likelihood_displacement": Case(
        share=0.3, trained=40, knobs={"iters": 20, "learning_rate": 3e-2, "lr_schedule": "constant"}
    ),
    "rejected_alone": Case(without_a_pattern, knobs={"learning_rate": 5e-4}),
    "length": Case(of_lengths, held_out_share=0.5, knobs={"iters": 6}),
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


def run_of(case: Case, folder: Path, told: FindingCollector, samples: int = 0) -> RunStatistics:
    trained = flipped(case.rows(case.trained, 0), case.share)
    held_out = flipped(case.rows(HELD_OUT, 1), case.held_out_share)
    knobs = {"iters": 10, "steps_per_eval": 0, "batch_size": 8, "save_every": 0} | case.knobs
    return RunStatistics.read(record(folder, trained, held_out, told, samples=samples, **knobs))


@pytest.mark.parametrize("fault", [fault.name for fault in DIAGNOSTICS])
def test_a_run_made_to_have_the_fault(tmp_path: Path, fault: str) -> None:
    told = FindingCollector()
    run = run_of(CASES[fault], tmp_path / "run", told, samples=6 if fault == "repetition" else 0)
    found = {finding.fault: finding for finding in diagnose(run)}
    assert fault in found, found.keys()
    assert found[fault].sentence.endswith(".") and found[fault].advice
    live = [finding.fault for finding in told.findings]
    assert live.count(fault) == 1, "told while it trained, once"
    assert found[fault].sentence in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStatistics, FindingCollector]:
    told = FindingCollector()
    return run_of(Case(knobs={"steps_per_eval": 5}), tmp_path_factory.mktemp("runs") / "healthy", told, samples=4), told


def test_a_healthy_run_has_none(healthy: tuple[RunStatistics, FindingCollector]) -> None:
    run, told = healthy
    assert diagnose(run) == [] and told.findings == []
    assert "Nothing looks wrong." in (run.path / "report.html").read_text()


def mirrored(run: RunStatistics, share: float) -> RunStatistics:
    """The run's numbers, had the first of the held-out pairs been labelled the other way round."""
    after = run.eval_records[-1]
    margins = after.margins * np.where(np.arange(len(after.margins)) < share * len(after.margins), -1, 1)
    last = replace(after, metrics={**after.metrics, "rewards/margins": margins})
    return replace(run, eval_records=[*run.eval_records[:-1], last])


def test_swapped_labels_are_told_from_chance(healthy: tuple[RunStatistics, FindingCollector]) -> None:
    (finding,) = [one for one in diagnose(mirrored(healthy[0], 1.0)) if one.fault == "chance"]
    assert "below chance" in finding.sentence


@pytest.mark.parametrize("share", [0.0, 0.125, 0.25])
def test_the_share_of_flipped_pairs_is_estimated(healthy: tuple[RunStatistics, FindingCollector], share: float) -> None:
    estimate = estimate_flipped_share(mirrored(healthy[0], share))
    assert estimate is not None and estimate.low <= share <= estimate.high
    assert abs(estimate.value - share) < 0.13
