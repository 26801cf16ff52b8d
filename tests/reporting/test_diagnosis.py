"""Each fault in a run made to have it, and none in a healthy one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.reporting.diagnosis import diagnose
from mlx_dpo.reporting.faults import FAULTS, flipped_share
from mlx_dpo.reporting.numbers import RunNumbers
from tests.reporting.conftest import WORDS, Told, pairs, record

Rows = list[dict[str, Any]]
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


HEALTHY = Case(knobs={"iters": 12, "steps_per_eval": 4})
CASES = {
    "likelihood_displacement": Case(share=0.3, trained=40, knobs={"learning_rate": 2e-2, "lr_schedule": "constant"}),
    "rejected_alone": Case(without_a_pattern, knobs={"iters": 10, "learning_rate": 5e-4}),
    "length": Case(of_lengths, held_out_share=0.5),
    "over_optimised": Case(
        share=0.3,
        trained=20,
        knobs={"iters": 40, "learning_rate": 1e-2, "lr_schedule": "constant", "steps_per_eval": 10},
    ),
    "chance": Case(share=0.5, held_out_share=0.5),
    "standing_still": Case(knobs={"iters": 20, "learning_rate": 1e-8}),
    "repetition": Case(
        lambda count, seed: pairs(count, seed, "x" * 24, "{}"),
        trained=32,
        knobs={"iters": 20, "learning_rate": 1e-2, "loss": "sft"},
    ),
    "label_noise": Case(share=0.15, held_out_share=0.2, trained=160, knobs={"iters": 20}),
}


def run_of(case: Case, folder: Path, told: Told, samples: int = 0) -> RunNumbers:
    trained = flipped(case.rows(case.trained, 0), case.share)
    held_out = flipped(case.rows(40, 1), case.held_out_share)
    knobs = {"iters": 10, "steps_per_eval": 5, "batch_size": 8, "save_every": 0} | case.knobs
    return RunNumbers.read(record(folder, trained, held_out, told, samples=samples, **knobs))


@pytest.mark.parametrize("fault", [fault.name for fault in FAULTS])
def test_a_run_made_to_have_the_fault(tmp_path: Path, fault: str) -> None:
    told = Told()
    run = run_of(CASES[fault], tmp_path / "run", told, samples=6 if fault == "repetition" else 0)
    found = {finding.fault: finding for finding in diagnose(run)}
    assert fault in found, found.keys()
    assert found[fault].sentence.endswith((".", "right.")) and found[fault].advice
    live = [finding.fault for finding in told.findings]
    assert live.count(fault) == 1, "told while it trained, once"
    assert found[fault].sentence in (tmp_path / "run" / "report.html").read_text()


def test_a_healthy_run_has_none(tmp_path: Path) -> None:
    told = Told()
    run = run_of(HEALTHY, tmp_path / "run", told, samples=6)
    assert diagnose(run) == [] and told.findings == []
    assert "Nothing looks wrong." in (tmp_path / "run" / "report.html").read_text()


def test_swapped_labels_are_told_from_chance(tmp_path: Path) -> None:
    run = run_of(Case(share=1.0), tmp_path / "run", Told())
    (finding,) = [one for one in diagnose(run) if one.fault == "chance"]
    assert "below chance" in finding.sentence


def test_the_share_of_flipped_pairs_is_estimated(tmp_path: Path) -> None:
    """A policy that was trained well, on held-out pairs of which a known share is flipped."""
    run = run_of(Case(held_out_share=0.25, knobs={"iters": 12}), tmp_path / "run", Told())
    share = flipped_share(run)
    assert share is not None and share.low <= 0.25 <= share.high
