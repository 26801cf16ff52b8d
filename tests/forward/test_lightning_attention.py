"""Lightning Attention in chunks against mlx-lm's loop over tokens: outputs, last state, gradients."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import bailing_moe_linear

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward import lightning_attention as lightning
from mlx_dpo.forward.mlx_patches import patched_mlx
from mlx_dpo.forward.network import Network
from tests.forward.families import tiny
from tests.forward.test_network import batch_of, ids

HEADS, KEY, VALUE, SCALE = 3, 8, 6, 0.3


def inputs(length: int) -> list[mx.array]:
    mx.random.seed(length)
    q, k = (mx.random.normal((2, HEADS, length, KEY)) for _ in range(2))
    v, h = mx.random.normal((2, HEADS, length, VALUE)), mx.random.normal((2, HEADS, KEY, VALUE))
    return [q, k, v, -mx.array([0.9, 0.1, 1e-4]), h]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 200, 300])
def test_it_is_the_loop(length: int) -> None:
    arrays = inputs(length)
    y, state = bailing_moe_linear.recurrent_gla(*arrays[:4], SCALE, arrays[4])
    upstream = [mx.random.normal(y.shape), mx.random.normal(state.shape)]

    def vjp(function: object) -> list[mx.array]:
        outputs, gradients = mx.vjp(lambda q, k, v, g, h: function(q, k, v, g, SCALE, h), arrays, upstream)  # type: ignore
        return [*outputs, *gradients]

    for ours, loop in zip(vjp(lightning.lightning_attention), vjp(bailing_moe_linear.recurrent_gla), strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(loop), rtol=1e-5, atol=1e-5 * np.abs(np.array(loop)).max())


def test_without_a_state_it_starts_from_zeros() -> None:
    *arrays, h = inputs(70)
    for ours, zeros in zip(
        lightning.lightning_attention(*arrays, SCALE),
        lightning.lightning_attention(*arrays, SCALE, mx.zeros_like(h)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.array(ours), np.array(zeros))


def test_a_model_runs_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    chunked = lightning.lightning_attention

    def recorded(q: mx.array, *others: mx.array, **settings: mx.array) -> tuple[mx.array, mx.array]:
        lengths.append(q.shape[2])
        return chunked(q, *others, **settings)

    def loop(*_: object, **__: object) -> None:
        raise AssertionError("the loop ran")

    model = tiny("bailing_moe_linear")
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0))
    network = Network.from_model(model.train())
    monkeypatch.setattr(lightning, "lightning_attention", recorded)
    monkeypatch.setattr(bailing_moe_linear, "recurrent_gla", loop)
    network.trace(batch_of([ids(random.Random(0), 20)], seed=0)).gradient(np.ones(2))
    assert max(lengths) == 19  # a prompt of 20 tokens, whose last is the first input of the completions
    with pytest.raises(ZeroDivisionError), patched_mlx():
        raise ZeroDivisionError
    assert bailing_moe_linear.recurrent_gla is loop
