"""The selective scan in chunks, against the recurrence in float64 and against mlx-lm's layers."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.jamba import JambaMambaMixer
from mlx_lm.models.mamba import MambaBlock

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward.mlx_patches import patched_mlx
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.selective_scan import selective_scan
from tests.forward.families import tiny
from tests.forward.test_network import batch_of, ids

NAMES = ("y", "last state", "x", "delta", "b", "c", "a", "state")
BATCH, INNER, STATE = 2, 12, 4


def make_inputs(length: int) -> list[mx.array]:
    """x, delta, b, c, a, state; some tokens forget all that is before them."""
    rng = np.random.default_rng(length)
    x, b, c = (rng.standard_normal((BATCH, length, size)) for size in (INNER, STATE, STATE))
    delta = np.where(rng.random(x.shape) < 0.05, 200, rng.uniform(0.001, 0.5, x.shape))
    a = -rng.uniform(0.1, 4, (INNER, STATE))
    state = rng.standard_normal((BATCH, INNER, STATE))
    return [mx.array(array.astype(np.float32)) for array in (x, delta, b, c, a, state)]


def loop(x: mx.array, delta: mx.array, b: mx.array, c: mx.array, a: mx.array, state: mx.array) -> Any:
    """Token by token, from equation 2 of arXiv 2312.00752."""
    outputs = []
    for t in range(x.shape[1]):
        written = mx.expand_dims(delta[:, t] * x[:, t], -1) * mx.expand_dims(b[:, t], 1)
        state = mx.exp(mx.expand_dims(delta[:, t], -1) * a) * state + written
        outputs.append((state * mx.expand_dims(c[:, t], 1)).sum(axis=-1))
    return mx.stack(outputs, axis=1), state


def results(function: Any, inputs: list[mx.array], dtype: mx.Dtype) -> list[np.ndarray]:
    """Output, last state, and the gradients of a random function of both."""
    mx.random.seed(0)
    upstream = [mx.random.normal(inputs[0].shape), mx.random.normal(inputs[-1].shape)]
    with mx.stream(mx.cpu):
        outputs, gradients = mx.vjp(function, [x.astype(dtype) for x in inputs], [x.astype(dtype) for x in upstream])
        return [np.array(x) for x in (*outputs, *gradients)]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 64, 65, 300])
def test_it_is_the_recurrence(length: int) -> None:
    inputs = make_inputs(length)
    actual, expected = results(selective_scan, inputs, mx.float32), results(loop, inputs, mx.float64)
    for name, ours, theirs in zip(NAMES, actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * max(1, np.abs(theirs).max()), err_msg=name)


def test_without_a_state_it_starts_from_zeros_and_keeps_the_dtype() -> None:
    *tokens, a, state = make_inputs(70)
    halves = [x.astype(mx.bfloat16) for x in tokens]
    y, last = selective_scan(*halves, a)
    assert (y.dtype, last.dtype) == (mx.bfloat16, mx.float32)
    for ours, zeros in zip((y, last), selective_scan(*halves, a, mx.zeros_like(state)), strict=True):
        assert mx.array_equal(ours, zeros)


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba"])
def test_a_model_gives_the_same_numbers(family: str) -> None:
    model = tiny("mamba" if family == "falcon_mamba" else family)
    if family == "falcon_mamba":
        for layer in model.layers:
            layer.mixer.use_bcdt_rms = True
    tokens = mx.array([ids(random.Random(0), 75), ids(random.Random(1), 75)])
    expected_cache, cache = model.make_cache(), model.make_cache()
    for part in (tokens[:, :70], tokens[:, 70:]):  # the second starts from the first's states
        expected = model(part, expected_cache)
        with patched_mlx():
            actual = model(part, cache)
        np.testing.assert_allclose(np.array(actual), np.array(expected), atol=1e-5 * np.abs(np.array(expected)).max())
    states = [dict(tree_flatten([layer.state for layer in layers])) for layers in (cache, expected_cache)]
    states = [{name: np.array(x) for name, x in state.items() if x is not None} for state in states]
    assert len(states[0]) >= len(cache)
    for name, ours in states[0].items():
        np.testing.assert_allclose(ours, states[1][name], atol=1e-5, err_msg=name)


def peak_bytes(length: int) -> int:
    """Of a forward and a backward pass, above the inputs."""
    x, delta, b, c = (mx.random.uniform(0.01, 1, (1, length, size)) for size in (256, 256, 16, 16))
    inputs = [x, delta, b, c, -mx.random.uniform(0.5, 1, (256, 16)), mx.zeros((1, 256, 16))]
    upstream = [mx.ones_like(x), inputs[-1]]
    mx.eval(inputs, upstream)
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.vjp(selective_scan, inputs, upstream))
    return mx.get_peak_memory() - held


def test_memory_does_not_hold_a_state_for_every_token() -> None:
    state_bytes = 4 * 256 * 16
    assert peak_bytes(2048) < 0.5 * 2048 * state_bytes
    assert peak_bytes(4096) - peak_bytes(2048) < 0.5 * 2048 * state_bytes


@pytest.mark.parametrize("family", ["mamba", "jamba"])
def test_a_model_runs_no_loop(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    def step(*_: Any) -> None:
        raise AssertionError("the loop ran")

    model = tiny(family)
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0))
    network = Network.from_model(model.train())
    monkeypatch.setattr(MambaBlock, "ssm_step", step)
    monkeypatch.setattr(JambaMambaMixer, "ssm_step", step)
    batch = batch_of([ids(random.Random(0), 20)], seed=0)
    network.logps(batch)
    for num_checkpointed in (0, network.num_checkpointable):
        network.trace(batch, num_checkpointed).gradient(np.ones(2))
    with pytest.raises(ZeroDivisionError), patched_mlx():
        raise ZeroDivisionError
    with pytest.raises(AssertionError, match="the loop ran"):
        model(mx.array([[3, 4, 5]]))
