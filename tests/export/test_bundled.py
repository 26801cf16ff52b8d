"""On the bundled model, on pairs that nothing was chosen by: 95% of the margin by bits, 90% at the base's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from mlx_dpo import TrainConfig, evaluate, train
from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter


def config(**overrides: Any) -> TrainConfig:
    return TrainConfig(model=str(MODEL), data=str(PAIRS / "train.jsonl"), **overrides)


def trained(run: Path, **overrides: Any) -> Path:
    """A short run at a high rate; 32 training pairs are set aside."""
    settings = {"iters": 16, "learning_rate": 3e-4, "warmup": 1, "steps_per_eval": 0, "valid_pairs": 32}
    return train(config(adapter_path=str(run), **settings, **overrides)).run


def margin(model: Path, adapter: Path | None = None) -> float:
    """On half of the held-out pairs, of what plain mlx_lm loads."""
    loaded, tokenizer = mlx_lm.load(str(model), adapter_path=None if adapter is None else str(adapter))
    rows = load_pairs("valid")[::2]
    return evaluate(config(reference=str(MODEL)), model=loaded, tokenizer=tokenizer, rows=rows)["rewards/margins"]


def size(model: Path) -> int:
    return sum(tensor.nbytes for tensor in mx.load(str(model / "model.safetensors")).values())


@pytest.mark.slow
def test_fused_models_keep_what_was_trained(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain")
    unfused = margin(MODEL, plain)
    auto = fuse_adapter(str(MODEL), plain, tmp_path / "auto")
    assert margin(auto.path) >= 0.95 * unfused
    assert size(auto.path) <= 2 * size(MODEL)
    assert min(row.kept for row in auto.measurements[2:] if row.kept is not None) < 0.9, "or there was nothing to do"
    aware = fuse_adapter(str(MODEL), trained(tmp_path / "aware", fuse_bits=4), tmp_path / "fused").path
    assert margin(aware) >= 0.9 * unfused
    assert size(aware) == size(MODEL)
