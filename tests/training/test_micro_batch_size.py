"""The micro-batch's size follows the time that a step takes on a GPU, here a stand-in, and stays with the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import Interrupted, TrainConfig, train
from mlx_dpo.config_files import read_yaml
from mlx_dpo.forward import memory_model as memory_model_module
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.micro_batch_size import StepTime
from mlx_dpo.training import policy_setup
from mlx_dpo.training.components import TrainComponents, TrainInputs, build_components
from mlx_dpo.training.listener import Listener
from tests.training.test_run import StopAfter, adapter, config


@pytest.mark.parametrize(
    ("fixed", "per_token", "num_blocks", "tokens"),
    [
        (0.0, 1e-3, 16, 576),  # nothing is fixed: no need for more
        (0.01, 1e-3, 16, 576),
        (0.1, 1e-3, 16, 2304),  # 1,900 tokens: 0.1 / (0.1 + 1.9) is 5%
        (1.7, 9.7e-3, 36, 3456),  # public figures of an 8B model in 4 bits on an M1 Max: 3,330 tokens
        (1.7, 9.7e-3, 24, 1728),  # blocks of half as much again: one second of each ends the micro-batch at 2,299
        (5.0, 1.0, 4, 576),  # even if the least takes longer
    ],
)
def test_the_fewest_tokens_that_reach_the_speed(fixed: float, per_token: float, num_blocks: int, tokens: int) -> None:
    assert StepTime(fixed, per_token).efficient_tokens(num_blocks) == tokens


def components_of(config: TrainConfig) -> TrainComponents:
    return build_components(TrainInputs(config, None, None, None, None, Listener()))


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, step_time: StepTime) -> list[MemoryModel]:
    """A stand-in for a GPU with the given speed; returns what was measured."""
    measured: list[MemoryModel] = []

    def measure(memory_model: MemoryModel) -> StepTime:
        measured.append(memory_model)
        return step_time

    monkeypatch.setattr(policy_setup, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(memory_model_module, "runs_on_cpu", lambda: False)
    monkeypatch.setattr(StepTime, "measure", measure)
    return measured


def test_a_gpu_is_measured_once_and_its_memory_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = components_of(config(tmp_path / "cpu"))
    assert cpu.config.micro_batch_tokens is None and cpu.memory_model.max_tokens == 576
    measured = on_a_gpu(monkeypatch, StepTime(0.05, 1e-3))
    gpu = components_of(config(tmp_path / "gpu"))
    assert gpu.config.micro_batch_tokens == gpu.memory_model.max_tokens == 1152 and len(measured) == 1
    assert gpu.memory_model.activation_limit > 10 * cpu.memory_model.activation_limit
    given = components_of(config(tmp_path / "given", micro_batch_tokens=64))
    assert given.memory_model.max_tokens == 64 and len(measured) == 1


def test_the_measured_size_stays_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, StepTime(0.05, 1e-3))
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(config(whole))
    listener = StopAfter(3)
    with pytest.raises(Interrupted):
        train(config(run), listener=listener, stop=listener.stop)
    measured = on_a_gpu(monkeypatch, StepTime(0.0, 1e-3))  # another size, if it were measured again
    train(config(run))
    assert not measured and read_yaml(run / "config.yaml")["micro_batch_tokens"] == 1152
    assert adapter(run) == adapter(whole)


def test_time_is_measured_without_a_trace(tmp_path: Path) -> None:
    def tensors(components: TrainComponents) -> list[Any]:
        return [
            mx.random.state[0].tolist(),
            {k: v.sum().item() for k, v in tree_flatten(components.policy.model.parameters())},
        ]

    components = components_of(config(tmp_path / "run", dropout=0.1))
    before = tensors(components)
    step_time = StepTime.measure(components.memory_model)
    assert step_time.per_token > 0 and step_time.fixed >= 0
    assert tensors(components) == before
