"""What several ranks train is what one process trains, whatever the loss; and each does its share of the work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_dpo.distributed.communicator import ring_all_reduce_bytes
from mlx_dpo.objectives import LOSS_FUNCTIONS
from mlx_dpo.training.gradients import GradientComputer
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.distributed.ranks import run
from tests.distributed.worker import steps, trained

KNOBS = {"model": str(CHECKPOINT), "data": str(PAIRS), "learning_rate": 1e-3, "valid_pairs": 0}
# One step of plain gradient descent at rate 1, so that what changes is the gradient; then a short batch. Pair by pair,
# so that all differ by the order of sums alone.
STEPS = {
    **KNOBS,
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
WITHOUT_REFERENCE = ("simpo", "cpo", "orpo", "sft")
LABELLED = ("kto", "bco", "apo_zero_unpaired", "sft")


def of_loss(loss: str, **more: Any) -> dict[str, Any]:
    knobs = {**STEPS, "loss": loss, **more}
    if loss == "odpo":
        knobs["data"] = str(TRL / "scored.jsonl")
    if loss in WITHOUT_REFERENCE:
        del knobs["reference"]
    return knobs


RUNS = {
    **{loss: of_loss(loss) for loss in LOSS_FUNCTIONS},
    **{f"{loss} of labelled rows": of_loss(loss, data=str(TRL / "labelled.jsonl")) for loss in LABELLED},
    "a sum": of_loss("sigmoid=0.8,bco_pair=0.2,sft=1"),
    "ld_alpha": of_loss("sigmoid", ld_alpha=0.5),
    "use_weighting": of_loss("sigmoid", use_weighting=True),
    "short batches": of_loss("kto", batch_size=5, iters=3, learning_rate=0.01),
    "running means": of_loss("beta_dpo", batch_size=3, iters=3, learning_rate=0.01),
    "dora": of_loss("sigmoid", fine_tune_type="dora", init_adapter=None),
    "full": of_loss("sigmoid", fine_tune_type="full", init_adapter=None, reference="initial", learning_rate=0.01),
    "a moving reference": of_loss("sigmoid", reference_sync_steps=1, iters=3, batch_size=3, learning_rate=0.01),
}


# What ranks tell each other of, and one loss that looks at a pair alone; of such ones two ranks run all.
BY_FOUR = [name for name, one in LOSS_FUNCTIONS.items() if one.whole_batch or one.kl or one.running]
BY_FOUR += ["sigmoid", "sft", "kto of labelled rows", "bco of labelled rows", "use_weighting", "short batches"]


def adapter(run: Path) -> dict[str, np.ndarray]:
    tensors = mx.load(str(run / "adapters.safetensors"))
    assert isinstance(tensors, dict)
    return {name: np.array(tensor).astype(np.float64) for name, tensor in tensors.items()}


def farthest(one: Path, other: Path) -> float:
    a, b = adapter(one), adapter(other)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def moved(run: Path, start: Path) -> np.ndarray:
    before, after = adapter(start), adapter(run)
    return np.concatenate([(after[name] - before[name]).reshape(-1) for name in after])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, steps(folder, RUNS)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Any]]:
    folders = {size: tmp_path_factory.mktemp(f"of-{size}") for size in (2, 4)}
    runs = {2: RUNS, 4: {name: RUNS[name] for name in BY_FOUR}}
    return {size: (folder, run(folder, size, "steps", runs=runs[size])) for size, folder in folders.items()}


@pytest.mark.parametrize(("size", "name"), [*((2, name) for name in RUNS), *((4, name) for name in BY_FOUR)])
def test_a_step_is_the_same(
    alone: tuple[Path, Any], together: dict[int, tuple[Path, Any]], size: int, name: str
) -> None:
    check_steps(alone, together[size], name)


@pytest.mark.slow
def test_a_step_of_four_is_the_same_whatever_the_loss(tmp_path: Path, alone: tuple[Path, Any]) -> None:
    told = run(tmp_path, 4, "steps", runs=RUNS)
    for name in RUNS:
        check_steps(alone, (tmp_path, told), name)


def check_steps(alone: tuple[Path, Any], together: tuple[Path, Any], name: str) -> None:
    for told in together[1]:
        assert told[name] == pytest.approx(alone[1][name], rel=1e-6, abs=1e-7)
    limit = 1e-6 if RUNS[name]["iters"] == 1 else 1e-5  # each step adds its rounding, and what follows from it
    if name in ("dora", "full"):  # they start elsewhere
        assert farthest(alone[0] / name, together[0] / name) <= limit
        return
    one, other = moved(alone[0] / name, TRL / "adapter"), moved(together[0] / name, TRL / "adapter")
    assert np.linalg.norm(one) > 0
    assert np.linalg.norm(one - other) <= limit * np.linalg.norm(one)


TWENTY = {
    **KNOBS,
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
    return folder, trained(folder, "run", TWENTY)


@pytest.mark.parametrize("size", [2, 4])
def test_twenty_steps_are_the_same(tmp_path: Path, twenty: tuple[Path, Any], size: int) -> None:
    told = run(tmp_path, size, "runs", runs={"run": TWENTY})
    for one in told:
        assert one["run"]["losses"] == pytest.approx(twenty[1]["losses"], rel=1e-5, abs=1e-6)
        assert len(one["run"]["evaluations"]) == 3
        for mine, theirs in zip(one["run"]["evaluations"], twenty[1]["evaluations"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert farthest(tmp_path / "run", twenty[0] / "run") <= 1e-5
    assert len({str(one["run"]["losses"]) for one in told}) == 1  # all ranks know the same, to the bit
    references = load_file(tmp_path / "run" / "checkpoints" / "0000020" / "references.safetensors")
    assert set(references) == {"train", "held_out"}
    assert not any(np.isnan(table).any() for table in references.values())  # nor is one to be computed again


def test_each_step_of_each_rank_drops_something_else() -> None:
    def drawn(step: int, rank: int, split: bool = True) -> float:
        GradientComputer(None, None, SimpleNamespace(rank=rank, data_parallel=split), 7).seed_dropout(step)  # type: ignore[arg-type]
        return mx.random.uniform().item()

    assert len({drawn(step, rank) for step in range(3) for rank in range(3)}) == 9
    assert drawn(2, 1) == drawn(2, 1)
    assert drawn(2, 0) == drawn(2, 1, split=False)  # all ranks run the same examples, of a model that is shared out


@pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_two_are_gone_on_with_by_others(tmp_path: Path, twenty: tuple[Path, Any], size: int) -> None:
    first = run(tmp_path, 2, "trained", name="run", knobs=TWENTY, stop_after=7)
    assert [one["ended"] for one in first] == ["interrupted at 7"] * 2
    rest = [trained(tmp_path, "run", TWENTY)] if size == 1 else run(tmp_path, size, "trained", name="run", knobs=TWENTY)
    assert [one["ended"] for one in rest] == ["done"] * size
    assert first[0]["losses"] + rest[0]["losses"] == pytest.approx(twenty[1]["losses"], rel=1e-5, abs=1e-6)
    assert farthest(tmp_path / "run", twenty[0] / "run") <= 1e-5


def test_a_model_that_is_shared_out_trains_the_same_adapter(tmp_path: Path, twenty: tuple[Path, Any]) -> None:
    shared = {**TWENTY, "tensor_parallel": True}
    first = run(tmp_path, 2, "trained", name="run", knobs=shared, stop_after=12)
    assert [one["ended"] for one in first] == ["interrupted at 12"] * 2
    rest = trained(tmp_path, "run", TWENTY)  # the adapter is whole, and one machine's
    assert rest["ended"] == "done"
    losses = first[0]["losses"] + rest["losses"]
    assert losses == pytest.approx(twenty[1]["losses"], rel=1e-5, abs=1e-6)
    assert first[1]["losses"] == first[0]["losses"]
    assert first[0]["evaluations"][1] == pytest.approx(twenty[1]["evaluations"][1], rel=1e-5, abs=1e-5)
    assert farthest(tmp_path / "run", twenty[0] / "run") <= 1e-5


def test_what_does_not_go_with_sharing_a_model_out(tmp_path: Path) -> None:
    shared = {**TWENTY, "tensor_parallel": True}
    assert "`tensor_parallel`: one process has no other" in trained(tmp_path, "run", shared)["ended"]
    refused = {
        "another model": {**shared, "reference": str(CHECKPOINT)},
        "dora": {**shared, "fine_tune_type": "dora"},
    }
    told = run(tmp_path, 2, "runs", runs=refused)
    for one in told:
        assert "`reference`: another model is not shared out" in one["another model"]["ended"]
        assert "can be trained by lora, and not by dora" in one["dora"]["ended"]


@pytest.mark.slow
def test_with_dropout_the_same_ranks_go_on_to_the_bit(tmp_path: Path) -> None:
    knobs = {**TWENTY, "dropout": 0.2, "iters": 8, "keep_checkpoints": 0}
    whole = run(tmp_path, 2, "trained", name="whole", knobs=knobs)
    run(tmp_path, 2, "trained", name="run", knobs=knobs, stop_after=3)
    rest = run(tmp_path, 2, "trained", name="run", knobs=knobs)
    assert rest[0]["losses"] == whole[0]["losses"][3:]
    files = [(tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]


@pytest.mark.parametrize("size", [2, 4])
def test_bytes_on_the_wire_are_what_the_adapter_predicts(tmp_path: Path, size: int) -> None:
    knobs = {**TWENTY, "valid_data": None, "rank": 64, "iters": 6, "batch_size": 4, "save_every": 0}
    told = run(tmp_path, size, "trained", name="run", knobs=knobs)
    buffer = 4 * sum(tensor.size for tensor in adapter(tmp_path / "run").values())
    for one in told:
        wire = one["on_the_wire"]  # within a step; from one to the next is a step's worth
        said = [report["bytes_sent"] for report in one["reports"]]
        assert wire[-1] - wire[0] == sum(said[1:])
        gradients = ring_all_reduce_bytes(size, [mx.zeros(buffer // 4)])
        assert gradients <= min(said) and max(said) <= gradients + 10_000  # the rest is the pairs' metrics


def test_each_rank_does_its_share(tmp_path: Path) -> None:
    knobs = {**KNOBS, "batch_size": 4, "iters": 6}
    told = run(tmp_path, 2, "counted", knobs=knobs)
    assert sum(one["sequences"] for one in told) == 16  # two of each of 8 pairs, once in three epochs
    # 4 of the 8 before training, to see whether they can be read; then 2 of the 4 of each step.
    assert [len(one["encoded"]) for one in told] == [4 + 6 * 2] * 2
    assert set(told[0]["encoded"][:4]) | set(told[1]["encoded"][:4]) == set(range(8))
    # What is encoded is parsed for it; the first row is looked at for its shape; rank 0 looks at all 8 once.
    every = told[1]["parsed"] - len(told[1]["encoded"])
    assert every < 8 and told[0]["parsed"] == told[1]["parsed"] + 8


def test_another_file_on_another_machine_is_noticed(tmp_path: Path) -> None:
    first, other = run(tmp_path, 2, "other_rows", knobs=KNOBS)
    assert "is not the same file on all machines" in other and "(on rank 1)" not in other
    assert "is not the same file on all machines (on rank 1)" in first
