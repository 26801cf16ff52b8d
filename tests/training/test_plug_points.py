"""The loop with a batch source, a scorer and a loss of a few lines each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_dpo import Listener, TrainConfig, UserError
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.data.row_parsing import parse_pairs
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Arrays
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.optimizer_batch import IndexedExample
from mlx_dpo.training.batch_loss import BatchLoss, BatchLossResult
from mlx_dpo.training.batch_source import BatchSource
from mlx_dpo.training.checkpoint import ComponentState, read_training_state
from mlx_dpo.training.checkpoint_saver import CheckpointSaver
from mlx_dpo.training.components import TrainInputs, build_components
from mlx_dpo.training.events import Metrics
from mlx_dpo.training.resume import start_trainer, starting_checkpoint
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.scorer import ForwardPass, Scorer
from mlx_dpo.training.trainer import Trainer
from tests.conftest import CHECKPOINT, PAIRS, rows_of


class RandomQuestions(BatchSource):
    """Pairs made while training; what is next depends on what came before."""

    digest = "random questions"

    def __init__(self, last: int = 1 << 30) -> None:
        self.last, self.count, self.rng = last, 0, np.random.default_rng(7)
        self.numbers = np.zeros(0, np.int64)
        self.encode = ExampleEncoder(mlx_lm.load(str(CHECKPOINT))[1], max_length=64, overlong="error", raw=False)

    def batch(self, step: int) -> Sequence[IndexedExample]:
        return [self._example() for _ in range(3)] if step < self.last else []

    def _example(self) -> IndexedExample:
        number, index, where = int(self.rng.integers(1000)), self.count, Where("questions")
        self.count, self.numbers = index + 1, np.append(self.numbers, number)
        row = {"prompt": f"Is {number} even?", "chosen": "yes, it is", "rejected": f"no: {self.numbers.sum()}"}
        encoded = self.encode(parse_pairs(row, where)[0], where)
        assert encoded is not None
        return IndexedExample(index, where, lambda: encoded)

    def state(self) -> ComponentState:
        return ComponentState({"count": self.count, "rng": self.rng.bit_generator.state}, {"numbers": self.numbers})

    def restore(self, state: ComponentState) -> None:
        self.count, self.rng.bit_generator.state = state.values["count"], state.values["rng"]
        self.numbers = state.arrays["numbers"]


class Killed(Exception):
    """The process is gone."""


class KillAfter(Listener):
    """Ends the run after a step without any goodbye, and keeps the losses."""

    def __init__(self, step: int = 0) -> None:
        self.at, self.losses = step, list[float]()

    def on_step(self, step: int, metrics: Metrics) -> None:
        self.losses.append(metrics["loss"])
        if step == self.at:
            raise Killed


def on_the_fly(run: Path, listener: Listener, *, source: BatchSource | None = None, **settings: Any) -> Trainer:
    config = TrainConfig(
        model=str(CHECKPOINT),
        adapter_path=str(run),
        save_every=2,
        **{"learning_rate": 1e-3, "iters": 7, "dropout": 0.1, **settings},
    )
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))
    rows = rows_of(PAIRS)
    folder = RunFolder(run)
    with starting_checkpoint(folder, SINGLE_PROCESS, resume=False) as checkpoint:
        components = build_components(TrainInputs(config, model, tokenizer, rows, rows[:2], listener), checkpoint)
        trainer = components.make_trainer(folder, listener, source=source or RandomQuestions())
        start_trainer(trainer, components, checkpoint)
    try:
        trainer.run()
    finally:
        folder.unlock()
    return trainer


def test_a_source_makes_examples_while_training_and_resumes_to_the_byte(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    listener = KillAfter()
    on_the_fly(whole, listener)
    assert len(listener.losses) == 7 and listener.losses[0] == pytest.approx(np.log(2)) and listener.losses[-1] < 0.6
    with pytest.raises(Killed):
        on_the_fly(cut, KillAfter(5))
    state = read_training_state(RunFolder(cut).require_latest_checkpoint())
    assert state.progress.step == 4 and state.source.values["count"] == 12 and len(state.source.arrays["numbers"]) == 12
    resumed = on_the_fly(cut, KillAfter())
    assert (cut / "adapters.safetensors").read_bytes() == (whole / "adapters.safetensors").read_bytes()
    tables = [load_file(RunFolder(run).require_latest_checkpoint() / "references.safetensors") for run in (whole, cut)]
    assert tables[0]["train"].shape == (21, 2) and not np.isnan(tables[0]["train"]).any()  # it grew with the source
    np.testing.assert_array_equal(tables[0]["train"], tables[1]["train"])
    assert resumed.progress.finished and resumed.source.state().values["count"] == 21


def test_a_source_may_end_and_has_to_say_how_long_it_is(tmp_path: Path) -> None:
    listener = KillAfter()
    trainer = on_the_fly(tmp_path / "run", listener, source=RandomQuestions(last=3))
    assert len(listener.losses) == 3 and trainer.progress.finished
    with pytest.raises(UserError, match="no epochs"):
        on_the_fly(tmp_path / "other", listener, iters=None)


class TokenScores(nn.Module):
    """A score for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.zeros(100_000)

    def __call__(self, completions: Sequence[tuple[int, ...]]) -> mx.array:
        return mx.stack([self.weight[mx.array(ids)].mean() for ids in completions])


class ScoreForward(ForwardPass):
    """The scores of some completions."""

    def __init__(self, model: TokenScores, completions: Sequence[tuple[int, ...]]) -> None:
        self.model, self.completions = model, completions
        self.outputs = {"scores": np.array(model(completions), np.float64)}

    def backward(self, gradients: Arrays) -> Any:
        upstream = mx.array(gradients["scores"].astype(np.float32))
        return nn.value_and_grad(self.model, lambda: (self.model(self.completions) * upstream).sum())()[1]


class RewardScorer(Scorer):
    """A scalar reward a completion."""

    def __init__(self) -> None:
        self.model = TokenScores()

    def forward(self, micro_batch: MicroBatch, indices: np.ndarray) -> ScoreForward:
        return ScoreForward(self.model, [completion for _, completion in micro_batch.sequences])

    def outputs(self, micro_batch: MicroBatch, indices: np.ndarray) -> Arrays:
        return self.forward(micro_batch, indices).outputs


class BradleyTerry(BatchLoss):
    """-log sigmoid(score of chosen - score of rejected)."""

    metric_names = ("loss", "accuracy")

    def __init__(self, whole_batch: bool) -> None:
        self.whole_batch = whole_batch

    def columns(self, micro_batches: Sequence[MicroBatch], outputs: Sequence[Arrays]) -> Arrays:
        return {"scores": np.concatenate([arrays["scores"].reshape(2, -1).T for arrays in outputs])}

    def __call__(self, columns: Arrays, statistics: Any, states: Any) -> BatchLossResult:
        margins = columns["scores"][:, 0] - columns["scores"][:, 1]
        metrics = np.stack([np.log1p(np.exp(-margins)), margins > 0], axis=1)
        slope = -1 / (1 + np.exp(margins))
        return BatchLossResult(metrics, {"scores": np.concatenate([slope, -slope])}, dict(states))


def train_reward(run: Path, listener: Listener, whole_batch: bool) -> None:
    config = TrainConfig(
        model="none", adapter_path=str(run), iters=20, learning_rate=0.05, steps_per_report=5, save_every=6
    )
    folder = RunFolder(run)
    saver = CheckpointSaver(folder, config, AdapterSpec("lora", -1), listener)
    trainer = Trainer(
        config, RandomQuestions(), RewardScorer(), BradleyTerry(whole_batch), None, saver, listener, threading.Event()
    )
    if checkpoint := folder.unfinished_checkpoint():
        trainer.model.load_weights(str(checkpoint / "adapters.safetensors"))
        trainer.restore(read_training_state(checkpoint), {})
    trainer.run()


@pytest.mark.parametrize("whole_batch", [False, True])
def test_a_scorer_of_rewards(tmp_path: Path, whole_batch: bool) -> None:
    whole, cut = KillAfter(), KillAfter(14)
    train_reward(tmp_path / "whole", whole, whole_batch)
    assert whole.losses[0] == pytest.approx(np.log(2)) and whole.losses[-1] < 0.6 * whole.losses[0]
    with pytest.raises(Killed):
        train_reward(tmp_path / "cut", cut, whole_batch)
    rest = KillAfter()
    train_reward(tmp_path / "cut", rest, whole_batch)
    assert rest.losses == whole.losses[12:]
    adapters = [(tmp_path / run / "adapters.safetensors").read_bytes() for run in ("whole", "cut")]
    assert adapters[0] == adapters[1]
