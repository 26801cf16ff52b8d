"""A mixed reference has the mixture of both policies' weights, however often it is mixed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.adapters.interpolation import MAX_RANK_GROWTH, interpolate_adapters
from mlx_dpo.adapters.spec import Tensors

INPUTS, OUTPUTS, RANK = 12, 10, 2


def policy(seed: int, experts: tuple[int, ...] = ()) -> Tensors:
    rng = np.random.default_rng(seed)
    shapes = {"l.lora_a": (*experts, INPUTS, RANK), "l.lora_b": (*experts, RANK, OUTPUTS), "l.m": (OUTPUTS,)}
    return {name: mx.array(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}


def update(tensors: Tensors) -> np.ndarray:
    return np.array(tensors["l.lora_a"]).astype(np.float64) @ np.array(tensors["l.lora_b"]).astype(np.float64)


@pytest.mark.parametrize("experts", [(), (3,)], ids=["a layer", "experts"])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.1])
def test_weights_are_mixed(share: float, experts: tuple[int, ...]) -> None:
    reference = policy(0, experts)
    expected, magnitude = update(reference), np.array(reference["l.m"]).astype(np.float64)
    for seed in range(1, 12):
        ours = policy(seed, experts)
        reference = interpolate_adapters(ours, reference, share)
        expected = share * update(ours) + (1 - share) * expected
        magnitude = share * np.array(ours["l.m"]) + (1 - share) * magnitude
        np.testing.assert_allclose(update(reference), expected, atol=2e-6 * np.abs(expected).max())
        np.testing.assert_allclose(np.array(reference["l.m"]), magnitude, rtol=1e-5, atol=1e-6)
        assert reference["l.lora_a"].shape[-1] <= min(INPUTS, OUTPUTS) + MAX_RANK_GROWTH * RANK


def test_a_fresh_adapter_is_the_base_model() -> None:
    fresh = policy(0)
    fresh["l.lora_b"] = mx.zeros_like(fresh["l.lora_b"])
    np.testing.assert_allclose(
        update(interpolate_adapters(policy(1), fresh, 0.3)), 0.3 * update(policy(1)), rtol=1e-5, atol=1e-6
    )
