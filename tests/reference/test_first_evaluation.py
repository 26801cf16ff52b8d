"""The evaluation before the first step: the policy is its own reference there, so one pass gives both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.forward.network import Network
from mlx_dpo.reference.reference_policy import SharedNetworkReference
from tests.conftest import CHECKPOINT, PAIRS, TRL

ONE_PASS: list[dict[str, Any]] = [{}, {"loss": "ipo"}, {"ld_alpha": 0.5}, {"use_weighting": True}, {"dropout": 0.2}]


class FirstEvaluation(Listener):
    """Counts forward passes up to the first evaluation's end; keeps its metrics and log-probs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes, self.metrics, self.references = 0, dict[str, float](), list[np.ndarray]()
        run = Network.logps

        def counted(network: Network, *args: Any, **options: Any) -> Any:
            self.passes += not self.metrics
            return run(network, *args, **options)

        monkeypatch.setattr(Network, "logps", counted)

    def on_run_start(self, plan: Any) -> None:
        self.passes = 0  # those that choose how the model is run

    def on_evaluation_metrics(self, metrics: dict[str, float]) -> None:
        self.metrics = self.metrics or metrics

    def on_evaluation_snapshot(self, snapshot: Any) -> None:
        if not self.references:
            self.references = [measurement.reference_logps for measurement in snapshot.measurements]


def first_evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> FirstEvaluation:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    config = TrainConfig(
        model=str(CHECKPOINT), data=str(PAIRS), valid_data=str(PAIRS), iters=1, adapter_path=str(folder), **settings
    )
    with monkeypatch.context() as patch:
        listener = FirstEvaluation(patch)
        train(config, listener=listener)
    return listener


@pytest.mark.parametrize("settings", ONE_PASS, ids=str)
def test_one_pass_gives_the_numbers_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    one = first_evaluation(tmp_path / "one", monkeypatch, **settings)
    monkeypatch.setattr(SharedNetworkReference, "is_policy", lambda reference: False)
    two = first_evaluation(tmp_path / "two", monkeypatch, **settings)
    assert 0 < 2 * one.passes == two.passes
    assert one.metrics == two.metrics
    np.testing.assert_array_equal(one.references, two.references)


def test_a_policy_that_is_not_its_reference_takes_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"init_adapter": str(TRL / "adapter")}
    start = first_evaluation(tmp_path / "start", monkeypatch, **settings)
    base = first_evaluation(tmp_path / "base", monkeypatch, **settings, reference="base")
    assert base.passes == 2 * start.passes
    assert start.metrics["eval_rewards/margins"] == 0 != base.metrics["eval_rewards/margins"]
