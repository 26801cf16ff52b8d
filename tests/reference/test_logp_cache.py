"""The cache of reference log-probs: hits to the bit, misses where anything differs, and damage that costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm
import numpy as np
import pytest

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.network import Network
from mlx_dpo.reference.logp_cache import LogpCache, list_logp_caches, logp_cache_folder
from tests.conftest import CHECKPOINT, PAIRS, TRL

BATCH = MicroBatch((0,), (((1, 2), (3,)), ((1, 2), (4, 5))))
OTHER = MicroBatch((0,), (((1,), (2, 3)), ((1, 2), (4, 5))))  # the same ids, parted elsewhere


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Counted:
    """Gives log-probs and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: MicroBatch) -> np.ndarray:
        self.calls += 1
        return np.array([-1 / 3, -float(self.calls)])


def test_what_is_known_is_not_computed_again() -> None:
    compute = Counted()
    first = LogpCache("a", "model").get_or_compute(BATCH, compute)
    again = LogpCache("a", "model")
    np.testing.assert_array_equal(again.get_or_compute(BATCH, compute), first)
    assert compute.calls == 1
    again.get_or_compute(OTHER, compute)
    LogpCache("b", "model").get_or_compute(BATCH, compute)
    assert compute.calls == 3
    assert [(file.model, file.pairs) for file in list_logp_caches()] == [("model", 1), ("model", 2)]


@pytest.mark.parametrize("kept", [*range(0, 120, 7), None], ids=str)
def test_a_damaged_file_is_dropped_from_the_damage_on_and_made_again(kept: int | None) -> None:
    compute = Counted()
    cache = LogpCache("a", "model")
    values = [cache.get_or_compute(batch, compute).copy() for batch in (BATCH, OTHER)]
    whole = cache.path.read_bytes()
    if kept is None:  # a byte of the second record's log-probs
        cache.path.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    else:
        cache.path.write_bytes(whole[:kept])
    damaged = LogpCache("a", "model")
    for batch, value in zip((BATCH, OTHER), values, strict=True):
        assert damaged.get_or_compute(batch, lambda _, value=value: value) is not None
    repaired = LogpCache("a", "model")
    assert len(repaired.records) == 2 and repaired.path.read_bytes() == whole


def test_something_else_in_its_place_is_replaced() -> None:
    logp_cache_folder().mkdir(parents=True)
    (logp_cache_folder() / "a.logps").write_bytes(b"\x00\xff not ours\n" * 9)
    LogpCache("a", "model").get_or_compute(BATCH, Counted())
    assert len(LogpCache("a", "model").records) == 1


def test_a_file_in_the_folders_place_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    assert LogpCache("a", "model").get_or_compute(BATCH, Counted()) is not None


def config(run: Path, **knobs: Any) -> TrainConfig:
    settings = {"model": str(CHECKPOINT), "data": str(PAIRS), "valid_data": str(PAIRS), "iters": 4, "batch_size": 4}
    return TrainConfig(**{**settings, "adapter_path": str(run), "rank": 4, "learning_rate": 1e-3, **knobs})


def reference_passes(monkeypatch: pytest.MonkeyPatch) -> list[MicroBatch]:
    """Micro-batches that go through a network without a gradient and are not evaluations' own."""
    seen: list[MicroBatch] = []
    of = LogpCache.get_or_compute

    def watched(self: LogpCache, batch: MicroBatch, compute: Any) -> np.ndarray:
        return of(self, batch, lambda batch: seen.append(batch) or compute(batch))

    monkeypatch.setattr(LogpCache, "get_or_compute", watched)
    return seen


def test_a_second_run_with_another_beta_computes_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = reference_passes(monkeypatch)
    cold = train(config(tmp_path / "cold"))
    assert passes
    passes.clear()
    warm = train(config(tmp_path / "warm"))
    assert not passes and warm.before == cold.before and warm.after == cold.after
    one, other = ((tmp_path / name / "adapters.safetensors").read_bytes() for name in ("cold", "warm"))
    assert one == other
    train(config(tmp_path / "beta", beta=0.3, rank=8, learning_rate=1e-2))
    assert not passes
    train(config(tmp_path / "start", init_adapter=str(TRL / "adapter")))
    assert passes


def test_evaluate_shares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = reference_passes(monkeypatch)
    measured = TrainConfig(model=str(CHECKPOINT), data=str(PAIRS), batch_size=4)
    one = evaluate(measured, adapter_path=TRL / "adapter")
    count = len(passes)
    assert count and evaluate(measured, adapter_path=TRL / "adapter") == one and len(passes) == count


def test_a_fingerprint_is_of_what_log_probs_follow_from() -> None:
    def digest(adapter: str | None = None, **spec: Any) -> str:
        model, _ = mlx_lm.load(str(CHECKPOINT), adapter_path=adapter)
        if spec:
            attach_adapter(model, AdapterSpec("lora", -1, **spec))
        return fingerprint(Network.from_model(model))

    bare = digest()
    assert digest(rank=4) == digest(rank=8, dropout=0.1) == bare, "a fresh adapter changes nothing"
    assert digest(str(TRL / "adapter")) != bare


def test_one_weight_makes_another_fingerprint() -> None:
    model, _ = mlx_lm.load(str(CHECKPOINT))
    before = fingerprint(Network.from_model(model))
    weight = model.model.layers[1].mlp.up_proj.weight
    swapped = weight[[1, 0, *range(2, weight.shape[0])]]  # the same numbers in other places
    model.model.layers[1].mlp.up_proj.weight = swapped
    assert fingerprint(Network.from_model(model)) != before
    model.model.layers[1].mlp.up_proj.weight = weight
    assert fingerprint(Network.from_model(model)) == before
