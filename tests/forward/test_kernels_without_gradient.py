"""Layers of mlx-lm that run a Metal kernel without a gradient; a stand-in for Metal, as no test machine has it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models import deepseek_v41, ssm

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.mlx_patches import patched_mlx
from mlx_dpo.forward.network import Network
from tests.forward.families import tiny
from tests.forward.test_network import ids

HANDLED = {
    "bitlinear_layers.py": "packed weights: no adapters on them (refused)",
    "deepseek_v41.py": "replaced",
    "gated_delta.py": "replaced, and not run in training",
    "kimi_k3.py": "not run in training",
    "rwkv7.py": "replaced",
    "ssm.py": "replaced",
}


def test_every_kernel_of_mlx_lm_is_known() -> None:
    """A new one needs a look: has it a gradient, and does it run in training?"""
    folder = Path(mlx_lm.__file__).parent / "models"
    assert {file.name for file in folder.glob("*.py") if "metal_kernel(" in file.read_text()} == set(HANDLED)


def kernel(*_: Any, **__: Any) -> None:
    raise AssertionError("a kernel without a gradient ran")


def test_a_completion_of_one_token_trains_a_mamba_2_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mamba2")
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0))
    network = Network.from_model(model.train())
    monkeypatch.setattr(ssm, "ssm_update_kernel", kernel)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "gpu", mx.default_device())
    prompt = ids(random.Random(0), 20)
    batch = MicroBatch((), ((prompt, [5]), (prompt, [6])))
    network.trace(batch).gradient(np.ones(2))
    with pytest.raises(AssertionError, match="without a gradient"):
        model(mx.array([[3]]), cache=_used_cache(model))


def _used_cache(model: Any) -> Any:
    cache = model.make_cache()
    model(mx.array([[3, 4]]), cache=cache)
    return cache


def test_hyper_connections_are_normalized_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepseek_v41, "_sinkhorn_kernel", kernel)
    monkeypatch.setattr(mx, "gpu", mx.default_device())
    matrix, eps = mx.random.uniform(0.1, 1, (2, 4, 4)), mx.array([1e-6])
    with patched_mlx():
        gradient = mx.grad(lambda x: deepseek_v41._sinkhorn(x, iters=3, eps=eps)[0, 0, 0])(matrix)
    assert mx.abs(gradient).max() > 0
    with pytest.raises(AssertionError, match="without a gradient"):
        deepseek_v41._sinkhorn(matrix, iters=3, eps=eps)
