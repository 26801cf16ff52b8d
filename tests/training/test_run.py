"""A run as a whole: its folder, its exactness under cutting and resuming, and mlx-lm reading what it wrote."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from mlx_dpo import Interrupted, Listener, TrainConfig, UserError, train
from mlx_dpo.config_files import load_config
from mlx_dpo.evaluation.metrics import PAIR_METRICS
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.listener import Metrics
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows
from tests.marks import mostly_slow


def config(run: Path, **knobs: Any) -> TrainConfig:
    settings = {"data": str(PAIRS), "valid_data": str(PAIRS), "batch_size": 3, "iters": 7}
    settings |= {"learning_rate": 1e-3, "steps_per_report": 2, **knobs}
    return TrainConfig(**{"model": str(CHECKPOINT), "adapter_path": str(run), **settings})


def adapter(run: Path) -> bytes:
    return (run / "adapters.safetensors").read_bytes()


def tensors(run: Path) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in mx.load(str(run / "adapters.safetensors")).items()}


class StopAfter(Listener):
    """Asks for an end after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.at, self.stop = step, threading.Event()

    def on_step(self, step: int, metrics: Metrics) -> None:
        if step == self.at:
            self.stop.set()


def test_the_folder_is_as_promised(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(config(run, save_every=3, steps_per_eval=4), listener=MetricsLog())
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "0000003",
        "0000006",
        "0000007",
    ]
    assert {p.name for p in run.iterdir()} == {
        "adapters.safetensors",
        "adapter_config.json",
        "config.yaml",
        "lineage.json",
        "metrics.jsonl",
        "checkpoints",
    }
    lines = read_metrics(run)
    reports = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in reports] == [2, 4, 6, 7]
    assert [line["step"] for line in evaluations] == [0, 4, 7]
    rates = {"grad_norm", "learning_rate", "pairs_per_second", "tokens_per_second", "peak_memory_gb"}
    assert set(reports[0]) == {"step", "epoch", *PAIR_METRICS, *rates}
    assert set(evaluations[0]) == {"step", "epoch", *(f"eval_{name}" for name in PAIR_METRICS)}
    assert result.after == {name: evaluations[-1][f"eval_{name}"] for name in PAIR_METRICS}
    assert result.after["rewards/accuracies"] > 0.8 > result.before["rewards/accuracies"]


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_mlx_lm_loads_it_with_the_same_logits_to_the_bit(tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))
    train(config(run, fine_tune_type=kind), model=model, tokenizer=tokenizer)
    loaded, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=str(run))
    base, _ = mlx_lm.load(str(CHECKPOINT))
    ids = mx.array([tokenizer.encode("Name three colours, and say why.")])
    assert mx.array_equal(loaded(ids), model(ids))
    assert not mx.allclose(loaded(ids), base(ids), atol=1e-3)


def test_the_same_config_gives_the_same_run(tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("a", "b", "c"))
    train(config(first, dropout=0.1))
    train(load_config(first / "config.yaml", {"adapter_path": str(again)}))
    train(config(other, dropout=0.1, seed=1))
    assert adapter(first) == adapter(again) != adapter(other)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("stop_at", mostly_slow([3, 1, 6], 3))
def test_stopped_and_resumed_is_the_same_to_the_byte(tmp_path: Path, stop_at: int, kind: str) -> None:
    knobs = {"optimizer": "adamw", "fine_tune_type": kind, "steps_per_report": 4}
    if kind != "full":
        knobs["dropout"] = 0.1
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config(whole, **knobs), listener=MetricsLog())
    listener = StopAfter(stop_at)
    with pytest.raises(Interrupted):
        train(config(cut, **knobs), listener=listener, stop=listener.stop)
    assert tensors(cut).keys() == tensors(whole).keys()
    train(config(cut, **knobs), listener=MetricsLog(), resume=True)
    assert adapter(cut) == adapter(whole)
    reports = [[line["loss"] for line in read_metrics(run) if "loss" in line][-1] for run in (whole, cut)]
    assert reports[0] == reports[1]  # steps before the stop are in the mean


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    knobs = {"batch_size": 8, "iters": 3, "valid_pairs": 0, "valid_data": None}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config(whole, memory_limit="4GB", **knobs))
    train(config(cut, memory_limit="1MB", **knobs))
    for name, tensor in tensors(whole).items():
        np.testing.assert_allclose(tensors(cut)[name], tensor, atol=2e-5)


def test_grad_checkpoint_changes_no_number(tmp_path: Path) -> None:
    plain, checkpointed = tmp_path / "plain", tmp_path / "checkpointed"
    train(config(plain, init_adapter=str(TRL / "adapter")))
    train(config(checkpointed, init_adapter=str(TRL / "adapter"), grad_checkpoint=True))
    for name, tensor in tensors(plain).items():
        np.testing.assert_allclose(tensors(checkpointed)[name], tensor, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "adafactor", "muon"])
def test_every_optimizer_lowers_the_loss(tmp_path: Path, optimizer: str) -> None:
    rate = {"sgd": 0.05, "muon": 0.02}.get(optimizer, 1e-3)
    result = train(config(tmp_path / "run", optimizer=optimizer, learning_rate=rate, iters=10, batch_size=8))
    assert result.after["loss"] < 0.6 < result.before["loss"]


def test_references(tmp_path: Path) -> None:
    """initial starts at log 2; base sees what the starting adapter did; none and another model are what they say."""
    start = str(TRL / "adapter")
    before = {}
    for reference in ("initial", "base", "none", str(CHECKPOINT)):
        run = config(tmp_path / str(len(before)), init_adapter=start, reference=reference, iters=1)
        before[reference] = train(run).before
    assert before["initial"]["rewards/margins"] == 0
    assert before["base"]["rewards/margins"] == pytest.approx(0.447319, abs=1e-4)  # TRL's first step
    assert before[str(CHECKPOINT)] == pytest.approx(before["base"], rel=1e-5)
    assert before["none"]["rewards/chosen"] == pytest.approx(0.1 * before["none"]["logps/chosen"])


def test_every_pair_once_before_any_twice(tmp_path: Path) -> None:
    from mlx_dpo.data.shuffled_epochs import ShuffledEpochs

    epochs = ShuffledEpochs(11, 4, seed=5)
    assert epochs.steps_per_epoch == 3
    for epoch in range(3):
        batches = [epochs.batch(epoch * 3 + i) for i in range(3)]
        assert [len(b) for b in batches] == [4, 4, 3]
        assert sorted(np.concatenate(batches)) == list(range(11))
    assert not np.array_equal(epochs.batch(0), epochs.batch(3))


def test_pairs_are_held_out_of_training(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {i} even?", "chosen": "yes", "rejected": "no"} for i in range(40)]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    plans = []

    class Plan(Listener):
        on_run_start = plans.append

    train(config(tmp_path / "run", data=str(data), valid_data=None, iters=1), listener=Plan())
    assert plans[0].num_examples == {"train": 36, "held_out": 4}


def test_a_bad_row_in_mid_run_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was whole when it was opened, and is not when a later step reads a row that is not in the cache."""
    monkeypatch.setattr("mlx_dpo.data.encoded_examples.MAX_CACHED_TOKENS", 0)
    rows = rows_of(PAIRS) * 30
    data = write_rows(tmp_path / "pairs.jsonl", rows)

    class Damage(Listener):
        def on_step(self, step: int, metrics: Metrics) -> None:
            if step == 2:
                data.write_text("not what it was\n" * 3)

    with pytest.raises(UserError, match=r"pairs\.jsonl"):
        train(config(tmp_path / "run", data=str(data), iters=60, save_every=0), listener=Damage())
    checkpoints = list((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 1
    assert json.loads((checkpoints[0] / "progress.json").read_text())["step"] >= 2
    mlx_lm.load(str(CHECKPOINT), adapter_path=str(tmp_path / "run"))


def test_resume_of_a_finished_run_says_so(tmp_path: Path) -> None:
    train(config(tmp_path / "run", iters=1))
    with pytest.raises(UserError, match="all its 1 steps"):
        train(config(tmp_path / "run", iters=1), resume=True)
    longer = train(config(tmp_path / "run", iters=2), resume_anyway=True)
    assert longer.steps == 2


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(run, iters=1))
    file = run / "checkpoints" / "0000001" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match=r"0000001.*damaged"):
        train(config(run, iters=2), resume_anyway=True)
    shutil.rmtree(run)


def test_grad_checkpoint_drops_the_same(tmp_path: Path) -> None:
    """A block that is computed again in the backward pass has to drop what it dropped before."""
    plain, checkpointed = tmp_path / "plain", tmp_path / "checkpointed"
    train(config(plain, dropout=0.3))
    train(config(checkpointed, dropout=0.3, grad_checkpoint=True))
    for name, tensor in tensors(plain).items():
        np.testing.assert_allclose(tensors(checkpointed)[name], tensor, atol=1e-5)
