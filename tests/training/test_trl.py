"""Twelve full-batch AdamW steps from a given adapter, against the numbers TRL gave (tests/trl/make_reference.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo import TrainConfig, train
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from tests.conftest import CHECKPOINT, PAIRS, TRL

REFERENCE = json.loads((TRL / "reference.json").read_text())
NAMES = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "grad_norm")
RUNS: dict[str, dict[str, Any]] = {
    "sigmoid": {"reference": "base"},
    "sigmoid_initial": {"reference": "initial"},
    "label_smoothing": {"reference": "base", "label_smoothing": 0.1},
}


@pytest.mark.parametrize("memory_limit", ["4GB", "1MB"], ids=["whole batch", "pair by pair"])
@pytest.mark.parametrize("name", RUNS)
def test_follows_trl(tmp_path: Path, name: str, memory_limit: str) -> None:
    settings = REFERENCE["settings"]
    config = TrainConfig(
        model=str(CHECKPOINT),
        data=str(PAIRS),
        adapter_path=str(tmp_path / "run"),
        init_adapter=str(TRL / "adapter"),
        valid_pairs=0,
        batch_size=8,
        iters=settings["max_steps"],
        learning_rate=settings["learning_rate"],
        lr_schedule="constant",
        warmup=0,
        beta=settings["beta"],
        max_grad_norm=settings["max_grad_norm"],
        steps_per_report=1,
        memory_limit=memory_limit,
        **RUNS[name],
    )
    train(config, listener=MetricsLog())
    ours = read_metrics(tmp_path / "run")
    theirs = REFERENCE["runs"][name]["steps"]
    assert len(ours) == len(theirs) == 12
    for step, (mine, trl) in enumerate(zip(ours, theirs, strict=True), 1):
        for metric in NAMES:
            assert mine[metric] == pytest.approx(trl[metric], rel=1e-3, abs=1e-3), (step, metric)
        for metric in ("logps/chosen", "logps/rejected"):
            assert mine[metric] == pytest.approx(trl[metric], rel=1e-4), (step, metric)


def test_ends_at_trls_adapter(tmp_path: Path) -> None:
    test_follows_trl(tmp_path, "sigmoid", "4GB")
    ours = mx.load(str(tmp_path / "run" / "adapters.safetensors"))
    theirs = mx.load(str(TRL / "final_adapters.safetensors"))
    assert ours.keys() == theirs.keys()
    for tensor in ours:
        np.testing.assert_allclose(np.array(ours[tensor]), np.array(theirs[tensor]), atol=1e-4)
