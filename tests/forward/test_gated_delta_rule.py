"""The gated delta rule in chunks, against mlx-lm's loop over tokens and against the recurrence in numpy."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import gated_delta
from mlx_lm.models.gated_delta import gated_delta_ops

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward import gated_delta_rule as rule
from mlx_dpo.forward.gated_delta_rule import gated_delta_rule
from mlx_dpo.forward.mlx_patches import patched_mlx
from mlx_dpo.forward.network import Network
from tests.forward.families import tiny
from tests.forward.test_network import batch_of, ids

NAMES = ("y", "last state", "q", "k", "v", "g", "beta", "state")
BATCH, KEY_HEADS, HEADS, KEY_SIZE, VALUE_SIZE = 2, 2, 4, 16, 24


def normalized(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def gates(rng: np.random.Generator, shape: tuple[int, ...], decay: str) -> np.ndarray:
    """ "strong": products of a chunk are far below the smallest float, and some gates are zero."""
    if decay == "weak":
        return 1 - 0.01 * rng.random(shape)
    tiny_or_zero = np.where(rng.random(shape) < 0.5, 0, 10.0 ** rng.uniform(-44, -2, shape))
    return np.where(rng.random(shape) < 0.3, tiny_or_zero, rng.random(shape))


def make_inputs(length: int, per_channel: bool, decay: str = "weak", parallel: bool = False) -> list[mx.array]:
    """q, k, v, g, beta, state. Where parallel, keys are nearly so, and step sizes nearly one."""
    rng = np.random.default_rng(length)
    q, k = rng.standard_normal((2, BATCH, length, KEY_HEADS, KEY_SIZE))
    v = rng.standard_normal((BATCH, length, HEADS, VALUE_SIZE))
    g = gates(rng, (BATCH, length, HEADS, KEY_SIZE)[: 4 if per_channel else 3], decay)
    beta = rng.uniform(0.97 if parallel else 0, 1, (BATCH, length, HEADS))
    state = rng.standard_normal((BATCH, HEADS, VALUE_SIZE, KEY_SIZE))
    inputs = (normalized(q) / KEY_SIZE**0.5, normalized(1 + 0.02 * k if parallel else k), v, g, beta, state)
    return [mx.array(x.astype(np.float32)) for x in inputs]


def results(function: Any, inputs: list[mx.array], mask: mx.array | None, dtype: mx.Dtype) -> list[np.ndarray]:
    """Output, last state, and the gradients of a random function of both. Masked outputs are of no use to anyone."""
    mx.random.seed(0)
    shape = (*inputs[2].shape[:3], VALUE_SIZE)
    upstream = [mx.random.normal(shape), mx.random.normal(inputs[5].shape)]
    upstream[0] = upstream[0] if mask is None else mx.where(mask[..., None, None], upstream[0], 0)
    with mx.stream(mx.cpu):
        (y, state), gradients = mx.vjp(
            lambda *x: function(*x, mask), [x.astype(dtype) for x in inputs], [x.astype(dtype) for x in upstream]
        )
        y = y if mask is None else mx.where(mask[..., None, None], y, 0)
        return [np.array(x) for x in (y, state, *gradients)]


def assert_equal(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for name, ours, theirs in zip(NAMES, actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * max(1, np.abs(theirs).max()), err_msg=name)


def numpy_rule(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Token by token in float64, from equation 10 of arXiv 2412.06464."""
    q, k, v, g, beta, state = (np.array(x, np.float64) for x in (q, k, v, g, beta, state))
    q, k = (np.repeat(x, HEADS // KEY_HEADS, axis=2) for x in (q, k))
    g = g.reshape(*g.shape[:3], -1)
    outputs = []
    for t in range(q.shape[1]):
        kk = np.einsum("bhi,bhj->bhij", k[:, t], k[:, t])
        transition = g[:, t, :, :, None] * (np.eye(KEY_SIZE) - beta[:, t, :, None, None] * kk)
        written = np.einsum("bhi,bhj->bhij", v[:, t], k[:, t])
        state = state @ transition + beta[:, t, :, None, None] * written
        outputs.append(np.einsum("bhij,bhj->bhi", state, q[:, t]))
    return np.stack(outputs, axis=1), state


@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("decay", ["weak", "strong"])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 300])
def test_it_is_the_loop(length: int, decay: str, per_channel: bool) -> None:
    inputs = make_inputs(length, per_channel, decay)
    assert_equal(
        results(gated_delta_rule, inputs, None, mx.float32), results(gated_delta_ops, inputs, None, mx.float32)
    )


@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("decay", ["weak", "strong"])
def test_masked_tokens_leave_the_state(decay: str, per_channel: bool) -> None:
    inputs = make_inputs(150, per_channel, decay)
    token = np.arange(150)[None]
    mask = mx.array((token >= [[0], [70]]) & (token % 7 != 3))
    assert_equal(
        results(gated_delta_rule, inputs, mask, mx.float32), results(gated_delta_ops, inputs, mask, mx.float32)
    )


@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("parallel", [False, True], ids=["", "parallel"])
def test_it_is_as_exact_as_float32_allows(parallel: bool, per_channel: bool) -> None:
    inputs = make_inputs(130, per_channel, parallel=parallel)
    actual = results(gated_delta_rule, inputs, None, mx.float32)
    assert_equal(actual, results(gated_delta_ops, inputs, None, mx.float64))
    for ours, exact in zip(actual, numpy_rule(*inputs), strict=False):
        np.testing.assert_allclose(ours, exact, atol=1e-5 * max(1, np.abs(exact).max()))


def test_parallel_keys_with_negative_eigenvalues_lose_few_digits() -> None:
    inputs = make_inputs(200, False, parallel=True)
    inputs[4] = 2 * inputs[4]  # every token mirrors the state at nearly the same key: the worst system to solve
    exact = results(gated_delta_ops, inputs, None, mx.float64)
    for ours, theirs in zip(results(gated_delta_rule, inputs, None, mx.float32), exact, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_without_a_state_it_starts_from_zeros_and_keeps_the_dtype() -> None:
    *tokens, state = make_inputs(70, per_channel=False)
    halves = [x.astype(mx.bfloat16) if name in "qkv" else x for name, x in zip(NAMES[2:7], tokens, strict=True)]
    for y, last in (gated_delta_rule(*halves), gated_delta_ops(*halves)):
        assert (y.dtype, last.dtype) == (mx.bfloat16, mx.float32)
        assert last.shape == state.shape
    np.testing.assert_allclose(np.array(gated_delta_rule(*halves)[1]), np.array(gated_delta_ops(*halves)[1]), atol=1e-5)


def peak_bytes(length: int, per_channel: bool) -> int:
    """Of a forward and a backward pass, above the inputs."""
    shape = (1, length, 4, 64)
    q, k, v = (mx.random.normal(shape) / 8 for _ in range(3))
    g, beta = (mx.random.uniform(0.5, 1, s) for s in (shape if per_channel else shape[:3], shape[:3]))
    inputs = [q, k, v, g, beta, mx.zeros((1, 4, 64, 64))]
    upstream = [mx.ones_like(v), inputs[5]]
    mx.eval(inputs, upstream)
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.vjp(gated_delta_rule, inputs, upstream))
    return mx.get_peak_memory() - held


@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar", "channel"])
def test_memory_is_the_inputs_gradients_and_one_segment(per_channel: bool) -> None:
    num_bytes = 4 * 4096 * 4 * 64  # of q
    short, long = peak_bytes(2048, per_channel), peak_bytes(4096, per_channel)
    assert long < 2.1 * short
    # outputs and gradients of q, k, v (and g), each once in segments and once joined, and the states between segments
    assert long < (16 if per_channel else 12) * num_bytes, "the loop keeps 64 times as much"


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_next", "kimi_linear", "olmo_hybrid", "bailing_moe_v3"])
def test_no_pass_of_a_model_loops_over_tokens(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    def step(*args: Any) -> None:
        raise AssertionError("the loop ran")

    model = tiny(family)
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0))
    network = Network.from_model(model.train())
    monkeypatch.setattr(gated_delta, "_gated_delta_step_ops", step)
    rng = random.Random(0)
    batch = batch_of([ids(rng, 20)], seed=0)
    network.logps(batch)
    network.hidden_states(batch)
    for num_checkpointed in (0, network.num_checkpointable):
        network.trace(batch, num_checkpointed).gradient(np.ones(2))
    with pytest.raises(AssertionError, match="the loop ran"):
        model(mx.array([[3, 4, 5]]))


def test_mlx_lm_is_left_as_it_was() -> None:
    before = gated_delta.gated_delta_ops, gated_delta.gated_delta_kernel
    with pytest.raises(ZeroDivisionError), patched_mlx():
        assert gated_delta.gated_delta_ops is rule.gated_delta_rule
        raise ZeroDivisionError
    assert (gated_delta.gated_delta_ops, gated_delta.gated_delta_kernel) == before
