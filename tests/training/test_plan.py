"""`plan` against what training then measures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.forward.memory_model import SATURATING_TOKENS
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training import run_planner as plans
from tests.cli.conftest import CommandResult, mlx_dpo  # noqa: F401 (a fixture)
from tests.conftest import CHECKPOINT, write_rows
from tests.training.test_exact import text

LENGTHS = [(7, 3, 2), (50, 10, 20), (3, 1, 30), (100, 13, 12), (20, 7, 3), (4, 2, 67), (30, 3, 3), (13, 1, 23)]  # words


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"prompt": text(p, i), "chosen": text(c), "rejected": text(r, 3)} for i, (p, c, r) in enumerate(LENGTHS)]
    return write_rows(tmp_path / "pairs.jsonl", rows * 2)


def config(data: Path, **knobs: Any) -> TrainConfig:
    settings = {"model": str(CHECKPOINT), "data": str(data), "batch_size": 4, "epochs": 2, "valid_pairs": 0, **knobs}
    return TrainConfig(**settings)


def planned_and_measured(data: Path, run: Path, knobs: dict[str, Any]) -> tuple[int, float, bool]:
    """Peak bytes of a plan and of the training, and whether the plan measured its own."""
    planned = plans.estimate_run(config(data, **knobs))
    train(config(data, adapter_path=str(run), **knobs), listener=MetricsLog())
    measured = 1e9 * max(line["peak_memory_gb"] for line in read_metrics(run) if "peak_memory_gb" in line)
    return planned.memory["peak"], measured, planned.is_measured


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[Pool]:
    """A process in which no other test has left or frees memory."""
    with get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("knobs", [{}, {"grad_checkpoint": True}, {"memory_limit": "8MB"}], ids=str)
def test_the_peak_is_within_a_tenth_of_what_training_measures(
    tmp_path: Path, data: Path, fresh_process: Pool, knobs: dict[str, Any]
) -> None:
    planned, measured, is_measured = fresh_process.apply(planned_and_measured, (data, tmp_path / "run", knobs))
    assert is_measured
    assert planned == pytest.approx(measured, rel=0.1)


def test_it_says_what_training_does(tmp_path: Path, data: Path) -> None:
    planned = plans.estimate_run(config(data))
    steps = []

    class Count(Listener):
        def on_step(self, step: int, metrics: dict[str, float]) -> None:
            steps.append(step)

    train(config(data, adapter_path=str(tmp_path / "run")), listener=Count())
    assert planned.steps == len(steps) and planned.pairs == planned.pairs_read == 2 * len(LENGTHS)
    assert planned.prompt_tokens[1] > 100 and planned.completion_tokens[1] > 67
    assert planned.tokens_per_pair[1] < SATURATING_TOKENS and planned.useful_share >= 0.9
    assert min(planned.seconds.values()) >= 0 and planned.seconds["training"] > planned.seconds["reference"] > 0
    assert planned.fits and planned.num_checkpointed == 0


def test_what_cannot_fit_is_not_tried_and_what_would_is_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "usable_memory", lambda: 1)
    knobs: dict[str, Any] = {"memory_limit": str(mx.get_active_memory() + (6 << 20))}
    planned = plans.estimate_run(config(data, **knobs))
    assert not planned.is_measured and not planned.fits and planned.seconds == {}
    assert planned.max_length_that_fits
    assert plans.estimate_run(config(data, max_length=planned.max_length_that_fits, **knobs)).fits


def test_the_command(mlx_dpo: Callable[..., CommandResult], data: Path) -> None:  # noqa: F811
    flags = ["--model", CHECKPOINT, "--data", data, "--batch-size", 4]
    said = mlx_dpo("plan", *flags)
    assert said.code == 0 and "It fits" in said.out and "peak memory" in said.out
    assert "It does not fit" in mlx_dpo("plan", *flags, "--memory-limit", "1MB").out
    planned = json.loads(mlx_dpo("plan", *flags, "--json").out)
    assert planned["fits"] and planned["memory"]["peak"] > planned["memory"]["held"]
    assert not Path("adapters").exists()
