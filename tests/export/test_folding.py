"""A layer folded: against float64 numpy, and against mlx's own rounding."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

from mlx_dpo.adapters import merging as folding
from mlx_dpo.adapters.merging import (
    FLOAT_PRECISION,
    Precision,
    layer_precision,
    merge_layer,
    rounding_error,
    weight_bytes,
)

IN, OUT, EXPERTS, RANK, SCALE = 128, 96, 4, 4, 2.0
KINDS = ["lora", "dora", "experts", "embedding"]
PRECISIONS = [Precision(bits) for bits in (4, 5, 6, 8)] + [FLOAT_PRECISION]


def weights(layer: nn.Module) -> np.ndarray:
    """Of a plain layer, as its scales say; mlx multiplies in float32 whatever the scales' type."""
    if "scales" not in layer:
        return np.array(layer.weight.astype(mx.float32), np.float64)
    scales, offsets = layer.scales.astype(mx.float32), layer.biases.astype(mx.float32)
    how = {"group_size": layer.group_size, "bits": layer.bits}
    return np.array(mx.dequantize(layer.weight, scales, offsets, **how), np.float64)


def adapted(kind: str, dtype: mx.Dtype = mx.float32, update: float = 0.01) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """An adapted 4-bit layer, its base's weights, and what they amount to with the adapter, in float64.

    update: its size against the weights'.
    """
    mx.random.seed(0)
    if kind == "experts":
        base: nn.Module = SwitchLinear(IN, OUT, EXPERTS, bias=False)
        wrap: Any = LoRASwitchLinear
    elif kind == "embedding":
        base, wrap = nn.Embedding(OUT, IN), LoRAEmbedding
    else:
        base, wrap = nn.Linear(IN, OUT), {"lora": LoRALinear, "dora": DoRALinear}[kind]
    base.set_dtype(dtype)
    layer = wrap.from_base(base.to_quantized(64, 4), r=RANK, scale=SCALE)
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    own = weights(folding.base_layer(layer))
    a, b = np.array(layer.lora_a, np.float64), np.array(layer.lora_b, np.float64)
    delta = {"experts": lambda: b @ a, "embedding": lambda: a @ b}.get(kind, lambda: b.T @ a.T)()
    factor = update * np.linalg.norm(own) / np.linalg.norm(SCALE * delta)
    layer.lora_b = layer.lora_b * factor
    whole = own + SCALE * factor * delta
    if kind == "dora":
        layer.m = layer.m * 1.01
        whole *= np.array(layer.m)[:, None] / np.linalg.norm(whole, axis=1, keepdims=True)
    return layer, own, whole


@pytest.mark.parametrize("piece", [1 << 24, 1000])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_rounded_once(monkeypatch: pytest.MonkeyPatch, kind: str, precision: Precision, piece: int) -> None:
    monkeypatch.setattr(folding, "SLICE_WEIGHTS", piece)
    layer, _, whole = adapted(kind)
    folded = merge_layer(layer, precision)
    if precision.bits is None:
        np.testing.assert_allclose(weights(folded), whole, atol=1e-6)
    elif precision.bits in (4, 6):  # as mlx rounds the sum; in float32 a sum may fall on the other side of a step
        how = {"group_size": 64, "bits": precision.bits}
        rounded = np.array(mx.dequantize(*mx.quantize(mx.array(whole.astype(np.float32)), **how), **how))
        assert (np.abs(weights(folded) - rounded) < 1e-5).mean() > 0.999
    else:  # to the nearest step, of steps a little wider than mlx's
        scales = np.abs(np.array(folded.scales, np.float64))
        assert (np.abs(weights(folded) - whole) <= 0.5001 * np.repeat(scales, 64, axis=-1) + 1e-6).all()
        by_mlx = np.abs(
            np.array(mx.quantize(mx.array(whole.astype(np.float32)), group_size=64, bits=precision.bits)[1])
        )
        wider = {5: 31 / 15 / 1.618, 8: 255 / 15 / 16.618}[precision.bits]
        np.testing.assert_allclose(scales, wider * by_mlx, rtol=1e-3)
    assert layer_precision(folded) == precision
    assert sum(v.nbytes for k, v in folded.parameters().items() if k != "bias") == weight_bytes(layer, precision)
    if "bias" in layer.get("linear", {}):
        assert mx.array_equal(folded.bias, layer.linear.bias)
    relative = np.square(weights(folded) - whole).sum() / np.square(whole).sum()
    assert rounding_error(layer, precision) == pytest.approx(relative, rel=1e-3, abs=1e-10)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_laid_out_as_mlx_does(bits: int) -> None:
    mx.random.seed(0)
    whole = mx.random.normal((16, 256))
    packed, scales, offsets = mx.quantize(whole, group_size=64, bits=bits)
    groups = mx.unflatten(whole, -1, (-1, 64))
    codes = mx.clip(mx.round((groups - offsets[..., None]) / scales[..., None]), 0, 2**bits - 1)
    assert mx.array_equal(folding._packed(codes.flatten(-2).astype(mx.uint32), bits), packed)


@pytest.mark.parametrize(("precision", "less"), [(Precision(8), 0.75), (FLOAT_PRECISION, 0.5)])
def test_under_bfloat16_it_loses_less_than_mlx_lms_fuse(precision: Precision, less: float) -> None:
    """mlx-lm adds up in bfloat16, and chooses codes for scales that are rounded afterwards."""
    layer, _, whole = adapted("lora", mx.bfloat16)
    theirs = layer.fuse(dequantize=True)
    if precision.bits is not None:
        theirs = theirs.to_quantized(precision.group_size, precision.bits)
    ours = merge_layer(layer, precision)
    assert {v.dtype for v in ours.parameters().values()} == {v.dtype for v in theirs.parameters().values()}
    assert np.linalg.norm(weights(ours) - whole) < less * np.linalg.norm(weights(theirs) - whole)


def test_trap_7_rounding_drowns_a_small_update() -> None:
    """Which is what all this is for: at 4 bits nothing of the update is left, at 8 most of it is."""
    layer, own, whole = adapted("lora")

    def cosine(bits: int) -> float:
        made, wanted = weights(merge_layer(layer, Precision(bits))) - own, whole - own
        return float((made * wanted).sum() / np.linalg.norm(made) / np.linalg.norm(wanted))

    assert cosine(4) < 0.2 and cosine(8) > 0.8


@pytest.mark.parametrize("bits", [5, 8])
def test_an_update_smaller_than_a_step_comes_through_on_average(bits: int) -> None:
    """Not so where the base's weights lie on the new steps, as they do by mlx's own choice of them."""
    layer, own, whole = adapted("lora", update=0.001)

    def through(made: nn.Module) -> float:
        update = whole - own
        return float(((weights(made) - own) * update).sum() / (update**2).sum())

    by_mlx = layer.fuse(dequantize=True).to_quantized(64, bits)
    assert abs(through(merge_layer(layer, Precision(bits))) - 1) < abs(through(by_mlx) - 1)
