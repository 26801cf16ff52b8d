"""Several ranks train what one process trains, with every loss, and each does its part of the work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_dpo.adapters.reward_head import read_reward_head
from mlx_dpo.distributed.communicator import ring_all_reduce_bytes
from mlx_dpo.objectives import LOSS_FUNCTIONS
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.training.gradients import GradientComputer
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.distributed.ranks import run_job
from tests.distributed.worker import first_steps, run_training

SETTINGS = {"model": str(CHECKPOINT), "data": str(PAIRS), "learning_rate": 1e-3, "valid_pairs": 0}
# One step of plain gradient descent at rate 1, so that what changes is the gradient; then a short batch. Pair by pair,
# so that all differ by the order of sums only.
STEPS = {
    **SETTINGS,
    "init_adapter": str(TRL / "adapter"),
    "reference": "base",
    "optimizer": "sgd",
    "learning_rate": 1.0,
    "lr_schedule": "constant",
    "warmup": 0,
    "max_grad_norm": 0,
    "iters": 1,
    "batch_size": 7,
    "memory_limit": "1MB",
}
WITHOUT_REFERENCE = ("simpo", "cpo", "orpo", "sft", "reward")
LABELLED = ("kto", "bco", "apo_zero_unpaired", "sft")


def loss_settings(loss: str, **more: Any) -> dict[str, Any]:
    settings = {**STEPS, "loss": loss, **more}
    if loss == "odpo":
        settings["data"] = str(TRL / "scored.jsonl")
    if loss in WITHOUT_REFERENCE:
        del settings["reference"]
    return settings


RUNS = {
    **{loss: loss_settings(loss) for loss, one in LOSS_FUNCTIONS.items() if one.opponent is Opponent.POLICY},
    **{f"{loss} of labelled rows": loss_settings(loss, data=str(TRL / "labelled.jsonl")) for loss in LABELLED},
    "a sum": loss_settings("sigmoid=0.8,bco_pair=0.2,sft=1"),
    "ld_alpha": loss_settings("sigmoid", ld_alpha=0.5),
    # Its weights are about 1e-3: at rate 1 the change would be lost in the rounding of the adapter's float32.
    "use_weighting": loss_settings("sigmoid", use_weighting=True, learning_rate=1000.0),
    "short batches": loss_settings("kto", batch_size=5, iters=3, learning_rate=0.01),
    "running means": loss_settings("beta_dpo", batch_size=3, iters=3, learning_rate=0.01),
    "dora": loss_settings("sigmoid", fine_tune_type="dora", init_adapter=None),
    "full": loss_settings("sigmoid", fine_tune_type="full", init_adapter=None, reference="initial", learning_rate=0.01),
    "a moving reference": loss_settings("sigmoid", reference_sync_steps=1, iters=3, batch_size=3, learning_rate=0.01),
}


def adapter(run: Path) -> dict[str, np.ndarray]:
    tensors = mx.load(str(run / "adapters.safetensors"))
    assert isinstance(tensors, dict)
    return {name: np.array(tensor).astype(np.float64) for name, tensor in tensors.items()}


def max_difference(first: Path, second: Path) -> float:
    a, b = adapter(first), adapter(second)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def adapter_update(run: Path, start: Path) -> np.ndarray:
    before, after = adapter(start), adapter(run)
    return np.concatenate([(after[name] - before[name]).reshape(-1) for name in after])


# One loss of each kind (by example, by batch, with a KL, with a state, by token), and of what is no loss alone; the
# slow test takes every run.
SOME = ("sigmoid", "aot", "kto", "beta_dpo", "tdpo2", "reward", "sft of labelled rows", "a sum", "use_weighting")
SOME += ("short batches", "running means", "dora", "a moving reference")
SOME_RUNS = {name: RUNS[name] for name in SOME}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("single")
    return folder, first_steps(folder, SOME_RUNS)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("of-2")
    return folder, run_job(folder, 2, "first_steps", runs=SOME_RUNS)


@pytest.mark.parametrize("name", SOME_RUNS)
def test_a_step_is_the_same(single: tuple[Path, Any], two_ranks: tuple[Path, Any], name: str) -> None:
    check_steps(single, two_ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_a_step_is_the_same_whatever_the_loss(tmp_path: Path, size: int) -> None:
    (tmp_path / "alone").mkdir()
    single = tmp_path / "alone", first_steps(tmp_path / "alone", RUNS)
    results = run_job(tmp_path, size, "first_steps", runs=RUNS)
    for name in RUNS:
        check_steps(single, (tmp_path, results), name)


def check_steps(single: tuple[Path, Any], multiple: tuple[Path, Any], name: str) -> None:
    for losses in multiple[1]:
        assert losses[name] == pytest.approx(single[1][name], rel=1e-6, abs=1e-7)
    limit = 1e-6 if RUNS[name]["iters"] == 1 else 1e-5  # each step adds rounding errors, which propagate
    if name in ("dora", "full"):  # they start elsewhere
        assert max_difference(single[0] / name, multiple[0] / name) <= limit
        return
    if name == "reward":
        heads = [np.array(read_reward_head(folder / name)) for folder in (single[0], multiple[0])]
        np.testing.assert_allclose(heads[1], heads[0], atol=limit)
    expected, actual = (adapter_update(folder / name, TRL / "adapter") for folder in (single[0], multiple[0]))
    assert np.linalg.norm(expected) > 0
    assert np.linalg.norm(expected - actual) <= limit * np.linalg.norm(expected)


TWENTY = {
    **SETTINGS,
    "valid_data": str(PAIRS),
    "iters": 20,
    "batch_size": 3,
    "steps_per_eval": 10,
    "steps_per_report": 1,
    "save_every": 10,
    "loss": "sigmoid",
}


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Twenty steps in one process: the epoch's last batch is short, and no number of ranks divides a batch of 3."""
    folder = tmp_path_factory.mktemp("twenty")
    return folder, run_training(folder, "run", TWENTY)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_twenty_steps_are_the_same(tmp_path: Path, twenty: tuple[Path, Any], size: int) -> None:
    results = run_job(tmp_path, size, "run_several", runs={"run": TWENTY})
    for result in results:
        assert result["run"]["losses"] == pytest.approx(twenty[1]["losses"], rel=1e-5, abs=1e-6)
        assert len(result["run"]["evaluations"]) == 3
        for actual, expected in zip(result["run"]["evaluations"], twenty[1]["evaluations"], strict=True):
            assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert max_difference(tmp_path / "run", twenty[0] / "run") <= 1e-5
    assert len({str(result["run"]["losses"]) for result in results}) == 1  # bit for bit the same on all ranks
    references = load_file(tmp_path / "run" / "checkpoints" / "0000020" / "references.safetensors")
    assert set(references) == {"train", "held_out"}
    assert not any(np.isnan(table).any() for table in references.values())  # so none is computed again


def test_dropout_differs_by_step_and_rank() -> None:
    def drawn(step: int, rank: int, split: bool = True) -> float:
        GradientComputer(None, None, SimpleNamespace(rank=rank, data_parallel=split), 7).seed_dropout(step)  # type: ignore[arg-type]
        return mx.random.uniform().item()

    assert len({drawn(step, rank) for step in range(3) for rank in range(3)}) == 9
    assert drawn(2, 1) == drawn(2, 1)
    assert drawn(2, 0) == drawn(2, 1, split=False)  # all ranks run the same examples, of a sharded model


@pytest.mark.slow
def test_a_reward_model_is_the_same_and_is_resumed_by_another_number_of_ranks(tmp_path: Path) -> None:
    settings = {**TWENTY, "loss": "reward", "center_rewards_coefficient": 0.01}
    whole = run_training(tmp_path / "alone", "run", settings)
    first = run_job(tmp_path, 2, "run_training", name="run", settings=settings, stop_after=7)
    assert [result["ended"] for result in first] == ["interrupted at 7"] * 2
    rest = run_job(tmp_path, 3, "run_training", name="run", settings=settings)
    assert first[0]["losses"] + rest[0]["losses"] == pytest.approx(whole["losses"], rel=1e-5, abs=1e-6)
    for actual, expected in zip(rest[0]["evaluations"], whole["evaluations"][1:], strict=True):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5) and "eval_min_reward" in actual
    assert max_difference(tmp_path / "run", tmp_path / "alone" / "run") <= 1e-5
    heads = [np.array(read_reward_head(folder)) for folder in (tmp_path / "run", tmp_path / "alone" / "run")]
    np.testing.assert_allclose(heads[0], heads[1], atol=1e-5)


@pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_resumed_by_another_number_of_ranks(tmp_path: Path, twenty: tuple[Path, Any], size: int) -> None:
    first = run_job(tmp_path, 2, "run_training", name="run", settings=TWENTY, stop_after=7)
    assert [result["ended"] for result in first] == ["interrupted at 7"] * 2
    again: dict[str, Any] = {"name": "run", "settings": TWENTY}
    rest = [run_training(tmp_path, **again)] if size == 1 else run_job(tmp_path, size, "run_training", **again)
    assert [result["ended"] for result in rest] == ["done"] * size
    assert first[0]["losses"] + rest[0]["losses"] == pytest.approx(twenty[1]["losses"], rel=1e-5, abs=1e-6)
    assert max_difference(tmp_path / "run", twenty[0] / "run") <= 1e-5


@pytest.mark.slow  # test_tensor_parallel.py compares gradients and steps
def test_tensor_parallelism_trains_the_same_adapter(tmp_path: Path, twenty: tuple[Path, Any]) -> None:
    shared = {**TWENTY, "tensor_parallel": True}
    first = run_job(tmp_path, 2, "run_training", name="run", settings=shared, stop_after=12)
    assert [result["ended"] for result in first] == ["interrupted at 12"] * 2
    rest = run_training(tmp_path, "run", TWENTY)  # the adapter is whole, and one machine's
    assert rest["ended"] == "done"
    losses = first[0]["losses"] + rest["losses"]
    assert losses == pytest.approx(twenty[1]["losses"], rel=1e-5, abs=1e-6)
    assert first[1]["losses"] == first[0]["losses"]
    assert first[0]["evaluations"][1] == pytest.approx(twenty[1]["evaluations"][1], rel=1e-5, abs=1e-5)
    assert max_difference(tmp_path / "run", twenty[0] / "run") <= 1e-5


def test_what_tensor_parallelism_refuses(tmp_path: Path) -> None:
    shared = {**TWENTY, "tensor_parallel": True}
    assert (
        "`tensor_parallel`: --tensor-parallel needs at least two processes"
        in run_training(tmp_path, "run", shared)["ended"]
    )
    refused = {
        "another model": {**shared, "reference": str(CHECKPOINT)},
        "dora": {**shared, "fine_tune_type": "dora"},
    }
    results = run_job(tmp_path, 2, "run_several", runs=refused)
    for result in results:
        assert "`reference`: --tensor-parallel can't shard a reference" in result["another model"]["ended"]
        assert "supports lora, not dora" in result["dora"]["ended"]


@pytest.mark.slow
def test_resumed_bit_for_bit_with_dropout(tmp_path: Path) -> None:
    settings = {**TWENTY, "dropout": 0.2, "iters": 8, "keep_checkpoints": 0}
    whole = run_job(tmp_path, 2, "run_training", name="whole", settings=settings)
    run_job(tmp_path, 2, "run_training", name="run", settings=settings, stop_after=3)
    rest = run_job(tmp_path, 2, "run_training", name="run", settings=settings)
    assert rest[0]["losses"] == whole[0]["losses"][3:]
    files = [(tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_bytes_sent_are_as_predicted(tmp_path: Path, size: int) -> None:
    settings = {**TWENTY, "valid_data": None, "rank": 64, "iters": 6, "batch_size": 4, "save_every": 0}
    results = run_job(tmp_path, size, "run_training", name="run", settings=settings)
    buffer = 4 * sum(tensor.size for tensor in adapter(tmp_path / "run").values())
    for result in results:
        sent = result["tcp_bytes"]  # within a step; from one to the next is a step's worth
        reported = [report["bytes_sent"] for report in result["reports"]]
        assert sent[-1] - sent[0] == sum(reported[1:])
        gradients = ring_all_reduce_bytes(size, [mx.zeros(buffer // 4)])
        assert gradients <= min(reported) and max(reported) <= gradients + 10_000  # the rest is the pairs' metrics


def test_each_rank_does_its_part(tmp_path: Path) -> None:
    settings = {**SETTINGS, "batch_size": 4, "iters": 6}
    results = run_job(tmp_path, 2, "count_work", settings=settings)
    assert sum(result["sequences"] for result in results) == 16  # two of each of 8 pairs, once in three epochs
    # 4 of the 8 before training, to see whether they can be read; then 2 of the 4 of each step.
    assert [len(result["encoded"]) for result in results] == [4 + 6 * 2] * 2
    assert set(results[0]["encoded"][:4]) | set(results[1]["encoded"][:4]) == set(range(8))
    # Rank 0 parses all 8 rows when it opens the file, and none again; rank 1 parses each row that it needs once.
    assert results[0]["parsed"] == 8 and results[1]["parsed"] <= 8


def test_another_file_on_another_machine_is_noticed(tmp_path: Path) -> None:
    first, other = run_job(tmp_path, 2, "train_on_other_rows", settings=SETTINGS)
    assert "is not the same file on all machines" in other and "(on rank 1)" not in other
    assert "is not the same file on all machines (on rank 1)" in first
