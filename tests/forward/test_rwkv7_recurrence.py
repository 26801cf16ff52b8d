"""The recurrence of RWKV-7 in chunks, against mlx-lm's loop over tokens in float64 and float32, and in a model."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import rwkv7
from mlx_lm.models.rwkv7 import Rwkv7TimeMixing

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward.mlx_patches import patched_mlx
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.rwkv7_recurrence import rwkv7_recurrence
from tests.forward.families import tiny
from tests.forward.test_network import batch_of, ids

NAMES = ("y", "last state", "r", "w", "k", "v", "a", "b", "state")
BATCH, HEADS, SIZE = 2, 3, 16


def make_inputs(length: int, decay: str = "weak") -> list[mx.array]:
    """r, w, k, v, a, b, state; a and b as the model makes them: a direction, and its negative times rates in [0, 1]."""
    rng = np.random.default_rng(length)
    r, k, v, direction = rng.standard_normal((4, BATCH, length, HEADS, SIZE))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    # the model's gates are above 0.54; here some are zero, and products are below the smallest float
    w = (
        rng.uniform(0.54, 1, r.shape)
        if decay == "weak"
        else np.where(rng.random(r.shape) < 0.1, 0, rng.random(r.shape))
    )
    state = rng.standard_normal((BATCH, HEADS, SIZE, SIZE))
    inputs = (r / SIZE**0.5, w, k / SIZE**0.5, v, -direction, direction * rng.random(r.shape), state)
    return [mx.array(x.astype(np.float32)) for x in inputs]


def loop(*inputs: mx.array) -> Any:
    shape = SimpleNamespace(num_heads=HEADS, head_dim=SIZE)
    y, state = Rwkv7TimeMixing._wkv7(shape, *inputs)  # type: ignore[arg-type]
    return y.reshape(inputs[0].shape), state


def results(function: Any, inputs: list[mx.array], dtype: mx.Dtype) -> list[np.ndarray]:
    """Output, last state, and the gradients of a random function of both."""
    mx.random.seed(0)
    upstream = [mx.random.normal(inputs[0].shape), mx.random.normal(inputs[-1].shape)]
    with mx.stream(mx.cpu):
        outputs, gradients = mx.vjp(function, [x.astype(dtype) for x in inputs], [x.astype(dtype) for x in upstream])
        return [np.array(x) for x in (*outputs, *gradients)]


@pytest.mark.parametrize("decay", ["weak", "strong"])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 300])
def test_it_is_the_loop(length: int, decay: str) -> None:
    inputs = make_inputs(length, decay)
    actual, expected = results(rwkv7_recurrence, inputs, mx.float32), results(loop, inputs, mx.float64)
    for name, ours, theirs in zip(NAMES, actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * max(1, np.abs(theirs).max()), err_msg=name)


def test_without_a_state_it_starts_from_zeros_and_keeps_the_dtype() -> None:
    *tokens, state = make_inputs(70)
    halves = [x.astype(mx.bfloat16) for x in tokens]
    y, last = rwkv7_recurrence(*halves)
    assert (y.dtype, last.dtype) == (mx.bfloat16, mx.float32)
    for ours, zeros in zip((y, last), rwkv7_recurrence(*halves, mx.zeros_like(state)), strict=True):
        assert mx.array_equal(ours, zeros)


def peak_bytes(length: int) -> int:
    """Of a forward and a backward pass, above the inputs."""
    inputs = [mx.random.uniform(0.5, 1, (1, length, 4, 64)) / 8 for _ in range(6)]
    inputs.append(mx.zeros((1, 4, 64, 64)))
    upstream = [mx.ones_like(inputs[0]), inputs[-1]]
    mx.eval(inputs, upstream)
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.vjp(rwkv7_recurrence, inputs, upstream))
    return mx.get_peak_memory() - held


def test_memory_is_the_inputs_gradients_and_one_segment() -> None:
    short, long = peak_bytes(2048), peak_bytes(4096)
    assert long < 2.1 * short
    assert long < 24 * 4 * 4096 * 4 * 64, "the loop keeps 64 times the size of an input for every state"


def test_a_model_runs_neither_loop_nor_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise AssertionError("the loop or the kernel ran")

    model = tiny("rwkv7")
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0))
    network = Network.from_model(model.train())
    monkeypatch.setattr(rwkv7, "_wkv7_step_ops", step)
    monkeypatch.setattr(rwkv7, "wkv7_kernel", step)
    batch = batch_of([ids(random.Random(0), 20)], seed=0)
    network.logps(batch)
    for num_checkpointed in (0, network.num_checkpointable):
        network.trace(batch, num_checkpointed).gradient(np.ones(2))
    with pytest.raises(ZeroDivisionError), patched_mlx():
        raise ZeroDivisionError
    with pytest.raises(AssertionError, match="the loop or the kernel ran"):
        model(mx.array([[3, 4, 5]]))
