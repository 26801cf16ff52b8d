"""On the bundled model, on pairs that nothing was chosen by: 95% of the margin by bits, 90% at the base's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.demo import MODEL, PAIRS
from mlx_dpo.export.fuse import fuse


def config(**knobs: Any) -> TrainConfig:
    return TrainConfig(model=str(MODEL), data=str(PAIRS / "train.jsonl"), **knobs)


def trained(run: Path, **knobs: Any) -> Path:
    """A run of 30 steps at a rate whose update is 4% of the weights; 64 training pairs are set aside."""
    return train(config(adapter_path=str(run), iters=30, learning_rate=2e-4, steps_per_eval=0, **knobs)).run


def margin(model: Path, adapter: Path | None = None) -> float:
    """On the held-out pairs, of what plain mlx_lm loads."""
    loaded, tokenizer = mlx_lm.load(str(model), adapter_path=None if adapter is None else str(adapter))
    valid = config(reference=str(MODEL)).replace(data=str(PAIRS / "valid.jsonl"))
    return evaluate(valid, model=loaded, tokenizer=tokenizer)["rewards/margins"]


def size(model: Path) -> int:
    return sum(tensor.nbytes for tensor in mx.load(str(model / "model.safetensors")).values())


def test_fused_models_keep_what_was_trained(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    unfused = margin(MODEL, plain)
    auto = fuse(str(MODEL), plain, tmp_path / "auto").path
    assert margin(auto) >= 0.95 * unfused
    assert size(auto) <= 2 * size(MODEL)
    aware = fuse(str(MODEL), trained(tmp_path / "aware", fuse_bits=4), tmp_path / "fused").path
    assert margin(aware) >= 0.9 * unfused
    assert size(aware) == size(MODEL)
    same = fuse(str(MODEL), plain, tmp_path / "same", bits="same", force=True).path
    assert margin(same) < 0.9 * unfused, "or there was nothing to do"
