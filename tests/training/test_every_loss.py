"""What holds of every loss in the loop: a step is the same however the batch is cut, with dropout too; measuring it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo import TrainConfig, UserError, evaluate, train
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.network import Network
from mlx_dpo.objectives import LOSS_FUNCTIONS
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.marks import mostly_slow

SCORED = TRL / "scored.jsonl"
KEEPING = [name for name, one in LOSS_FUNCTIONS.items() if one.next_state]  # of batches before: evaluate has seen none
OFFLINE = [name for name, one in LOSS_FUNCTIONS.items() if one.opponent is Opponent.POLICY]
LOSSES = [*OFFLINE, "sigmoid=0.8,bco_pair=0.2,sft=1", "aot=1,ipo=0.1,sft=0.5"]


def config(run: Path, **knobs: Any) -> TrainConfig:
    """One step of plain gradient descent at rate 1, so that what changes is the gradient."""
    settings: dict[str, Any] = {
        "model": str(CHECKPOINT),
        "data": str(SCORED if knobs.get("loss") == "odpo" else PAIRS),
        "adapter_path": str(run),
        "init_adapter": str(TRL / "adapter"),
        "reference": "base",
        "valid_pairs": 0,
        "batch_size": 8,
        "iters": 1,
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "lr_schedule": "constant",
        "warmup": 0,
        "max_grad_norm": 0,
        "steps_per_report": 1,
    }
    if knobs.get("loss") in ("simpo", "cpo", "orpo", "reward"):
        del settings["reference"]
    return TrainConfig.from_mapping(settings | knobs)


def gradient(run: Path) -> np.ndarray:
    before, after = (mx.load(str(folder / "adapters.safetensors")) for folder in (TRL / "adapter", run))
    return np.concatenate([np.array(before[name] - after[name]).astype(np.float64).reshape(-1) for name in after])


@pytest.mark.parametrize("loss", mostly_slow(LOSSES, 3))
def test_a_step_is_the_same_however_the_batch_is_cut(tmp_path: Path, loss: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config(whole, loss=loss, memory_limit="4GB"), listener=MetricsLog())
    train(config(cut, loss=loss, memory_limit="1MB"), listener=MetricsLog())
    one, other = gradient(whole), gradient(cut)
    # discopop's temperature makes 20 times as much of what float32 leaves of a log-prob.
    limit = 1e-5 if loss == "discopop" else 2e-6
    assert np.linalg.norm(one - other) <= limit * np.linalg.norm(one)
    for name, value in read_metrics(whole)[0].items():
        if "second" not in name and "memory" not in name:
            nats = 1e-5 if name == "kl" else 1e-6  # of sums of some 200; rewards are a tenth of that
            assert read_metrics(cut)[0][name] == pytest.approx(value, rel=2e-6, abs=nats), name


def test_the_second_pass_drops_what_the_first_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = [], []
    logps, trace = Network.logps, Network.trace

    def seen_first(self: Network, batch: MicroBatch, **asked: Any) -> Any:
        result = logps(self, batch, **asked)
        if any(getattr(m, "training", False) and type(m).__name__ == "Dropout" for m in self.model.modules()):
            first.append(result.sums)
        return result

    def seen_second(self: Network, batch: MicroBatch, recomputed: int = 0, **asked: Any) -> Any:
        result = trace(self, batch, recomputed, **asked)
        second.append(result.logps.sums)
        return result

    monkeypatch.setattr(Network, "logps", seen_first)
    monkeypatch.setattr(Network, "trace", seen_second)
    # Not from an adapter folder, which brings its own dropout. At step 1 the adapter is zero, so it takes two steps.
    knobs = {"loss": "aot", "dropout": 0.3, "iters": 2, "memory_limit": "1MB", "init_adapter": None}
    train(config(tmp_path / "run", learning_rate=0.1, **knobs))
    first = first[-16:]
    assert len(second) == 16
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert not np.allclose(first[8:], first[:8], atol=1e-2)


@pytest.mark.parametrize("loss", mostly_slow(LOSSES, 3))
def test_evaluate_is_what_training_measures(tmp_path: Path, loss: str) -> None:
    """The first step's metrics are of the starting adapter, and so are evaluate's."""
    run = tmp_path / "run"
    rate = 0.0 if loss == "reward" else 1.0  # its head is new, and only the run has it
    train(config(run, loss=loss, learning_rate=rate), listener=MetricsLog())
    measured = evaluate(
        TrainConfig(model=str(CHECKPOINT), data=config(run, loss=loss).data, loss=loss, batch_size=8),
        adapter_path=run if loss == "reward" else TRL / "adapter",
    )
    logged = read_metrics(run)[0]
    for name, value in measured.items():
        if name != "pairs" and not (name == "loss" and loss in KEEPING):
            assert logged[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_a_loss_without_reference_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("the reference policy was run")

    monkeypatch.setattr("mlx_dpo.evaluation.reference_setup.CachedReference", refused)
    train(config(tmp_path / "run", loss="simpo"))
    with pytest.raises(UserError, match="no reference"):
        train(config(tmp_path / "again", loss="simpo", reference="base"))
    with pytest.raises(AssertionError, match="reference policy"):
        train(config(tmp_path / "other", loss="sigmoid"))
