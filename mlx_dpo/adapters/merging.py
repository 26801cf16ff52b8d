"""One adapted layer folded into one plain layer, at some precision."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_dpo.adapters.qa_lora import fused_group_parameters, is_qa_lora

SLICE_WEIGHTS = 1 << 24  # weights of a layer that are worked on in float32 at a time


@dataclass(frozen=True)
class Precision:
    """The precision of a layer's weights, as in `quantization` of config.json.

    Attributes:
        bits: per weight; None: not quantized, in the base's float type.
        group_size: weights that share a scale.
        mode: mlx's quantization mode.
    """

    bits: int | None = None
    group_size: int = 64
    mode: str = "affine"

    def to_json(self) -> dict[str, Any] | bool:
        """The layer's entry under `quantization` in config.json; mlx-lm leaves a layer that says false in float."""
        if self.bits is None:
            return False
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def with_bits(self, bits: int) -> Precision:
        """Groups of about this size at other bits, which mlx has in affine mode alone."""
        return Precision(bits, max(32, self.group_size))


GOLDEN_RATIO = 0.618  # multiples of it spread evenly over the unit interval
FLOAT_PRECISION = Precision()
_FLOAT_KIND: dict[type, Any] = {
    nn.QuantizedLinear: lambda: nn.Linear(1, 1, bias=False),
    nn.QuantizedEmbedding: lambda: nn.Embedding(1, 1),
    QuantizedSwitchLinear: lambda: SwitchLinear(1, 1, 1, bias=False),
}


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """A model's adapted layers by name, in the order of the blocks."""
    layers = [(name, module) for name, module in model.named_modules() if "lora_a" in module]
    return dict(sorted(layers, key=lambda item: re.sub(r"\d+", lambda number: number.group().zfill(6), item[0])))


def base_layer(module: nn.Module) -> nn.Module:
    """The layer under an adapter, or the layer itself."""
    return module.get("linear", module.get("embedding", module))


def layer_precision(module: nn.Module) -> Precision:
    """The precision of a layer, or of the layer under an adapter."""
    base = base_layer(module)
    return Precision(base.bits, base.group_size, base.mode) if "scales" in base else FLOAT_PRECISION


def compute_dtype(module: nn.Module) -> mx.Dtype:
    """The float type that a layer, or the layer under an adapter, computes in."""
    base = base_layer(module)
    if "scales" not in base:
        return base.weight.dtype
    floats = mx.issubdtype(base.scales.dtype, mx.floating)  # mxfp4's scales are bytes
    return base.scales.dtype if floats else mx.bfloat16


def weight_bytes(module: nn.Module, precision: Precision) -> float:
    """Bytes of a layer's weights at a precision, scales and offsets included."""
    size = compute_dtype(module).size
    if precision.bits is None:
        return _count(module) * size
    per_group = 2 * size if precision.mode == "affine" else 1
    return _count(module) * (precision.bits / 8 + per_group / precision.group_size)


def merge_layer(module: nn.Module, precision: Precision) -> nn.Module:
    """Merge a layer and its adapter, if it has one, and quantize the result.

    A QA-LoRA adapter merged at the base's own precision only changes scales and offsets, so no weight is requantized.
    Otherwise the update is added in float32 and rounded once.

    Args:
        module: an adapted layer, or a plain one.
        precision: the merged layer's precision.

    Returns:
        A plain layer, evaluated.
    """
    if is_qa_lora(module) and precision == layer_precision(module):
        folded = _with_fused_scales(module)
        mx.eval(folded.parameters())
        return folded
    parts, stretch = [], _stretch(layer_precision(module), precision)
    for piece in _pieces(module):
        whole, dtype = _in_float32(piece), compute_dtype(module)
        part = _cast(whole if precision.bits is None else _quantized(whole, precision, dtype, stretch), dtype)
        mx.eval(part.parameters())
        parts.append(part)
    folded = parts[0]
    folded.update(tree_map(lambda *tensors: mx.concatenate(tensors), *(part.parameters() for part in parts)))
    mx.eval(folded.parameters())
    return folded


def rounding_error(module: nn.Module, precision: Precision) -> float:
    """Relative squared rounding error of a layer's merged weights at a precision."""
    error = whole = mx.array(0.0)
    for piece in _pieces(module):
        exact, rounded = _in_float32(piece).weight, _dequantized(merge_layer(piece, precision)).weight
        error, whole = error + mx.square(exact - rounded).sum(), whole + mx.square(exact).sum()
        mx.eval(error, whole)
    return float(error) / (float(whole) or 1.0)


def _count(module: nn.Module) -> int:
    base = base_layer(module)
    return base.scales.size * base.group_size if "scales" in base else base.weight.size


def _pieces(module: nn.Module) -> Iterator[nn.Module]:
    """A layer split into layers of fewer rows, or of fewer experts; one that has several adapters is not split."""
    if isinstance(module.get("lora_a"), list):  # afm7's projections of one input
        yield module
        return
    rows = base_layer(module).weight.shape[0]
    step = max(1, SLICE_WEIGHTS * rows // _count(module))
    for start in range(0, rows, step):
        yield _cut(module, slice(start, start + step))


def _cut(module: nn.Module, part: slice) -> nn.Module:
    base, piece = copy(base_layer(module)), copy(module)
    for name in ("weight", "scales", "biases", "bias"):
        if base.get(name) is not None:
            base[name] = base[name][part]
    if "lora_a" not in module:
        return base
    piece["linear" if "linear" in module else "embedding"] = base
    experts = module.lora_a.ndim == 3
    if experts or "embedding" in module:
        piece.lora_a = module.lora_a[part]
    if "linear" in module:
        piece.lora_b = module.lora_b[part] if experts else module.lora_b[:, part]
    if "m" in module:
        piece.m = module.m[part]
    return piece


def _with_fused_scales(module: nn.Module) -> nn.Module:
    layer = copy(base_layer(module))
    layer.scales, layer.biases = fused_group_parameters(module)
    return layer


def _in_float32(module: nn.Module) -> nn.Module:
    """A layer with its adapter merged, if it has one, in float32."""
    if is_qa_lora(module):
        return _dequantized(_with_fused_scales(module))
    base = base_layer(module)
    if base is module:
        return _dequantized(module)
    adapted = copy(module)
    adapted["linear" if "linear" in module else "embedding"] = _dequantized(base)
    return adapted.fuse()


def _dequantized(layer: nn.Module) -> nn.Module:
    """The same layer with float32 weights."""
    if "scales" not in layer:
        plain = copy(layer)
        plain.weight = layer.weight.astype(mx.float32)
        return plain
    plain = _FLOAT_KIND[type(layer)]()
    scales, biases = layer.scales, layer.get("biases")
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    quantization = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    plain.weight = mx.dequantize(layer.weight, scales, biases, **quantization).astype(mx.float32)
    if "bias" in layer:
        plain.bias = layer.bias
    return plain


def _stretch(base: Precision, precision: Precision) -> float:
    """What to multiply mlx's steps by, so that they don't fall in with the base's.

    Weights of a quantized base lie on its steps. Where those are a whole number of the new steps (17 from 4 bits to 8),
    all start in the middle of a rounding interval, and an update smaller than half a step is rounded away whole. Steps
    a little wider put them at all places of the interval, and the update comes through on average.
    """
    if base.bits is None or precision.bits is None or precision.bits <= base.bits or precision.mode != "affine":
        return 1.0
    ratio = (2**precision.bits - 1) / (2**base.bits - 1)
    return 1.0 if 0.2 <= ratio % 1 + 1e-9 <= 0.8 else ratio / (math.floor(ratio) - 1 + GOLDEN_RATIO)


def _quantized(layer: nn.Module, precision: Precision, dtype: mx.Dtype, stretch: float) -> nn.Module:
    """A float32 layer rounded, for scales and offsets of a float type, with steps so much wider than mlx's.

    Codes are chosen for the scales as that type rounds them: at 8 bits and in bfloat16 this halves the error.
    """
    bits, size = precision.bits, precision.group_size
    assert bits is not None
    rounded = layer.to_quantized(size, bits, mode=precision.mode)
    if precision.mode == "affine" and (dtype != mx.float32 or stretch != 1):
        rounded.scales, rounded.biases = (stretch * rounded.scales).astype(dtype), rounded.biases.astype(dtype)
        scales, offsets = (part.astype(mx.float32)[..., None] for part in (rounded.scales, rounded.biases))
        codes = mx.clip(mx.round((mx.unflatten(layer.weight, -1, (-1, size)) - offsets) / scales), 0, 2**bits - 1)
        rounded.weight = _packed(codes.flatten(-2).astype(mx.uint32), bits)
    return rounded


def _packed(codes: mx.array, bits: int) -> mx.array:
    """Pack codes as mlx does: [..., n] uint32 to [..., n * bits / 32], one after the other, from the lowest bit up."""
    lanes = mx.unflatten(codes, -1, (-1, 32))
    words = [mx.zeros(lanes.shape[:-1], mx.uint32)] * bits
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        words[word] = words[word] | (lanes[..., i] << shift)
        if shift + bits > 32:
            words[word + 1] = words[word + 1] | (lanes[..., i] >> (32 - shift))
    return mx.stack(words, axis=-1).flatten(-2)


def _cast(layer: nn.Module, dtype: mx.Dtype) -> nn.Module:
    floats = tree_map(lambda p: p.astype(dtype) if mx.issubdtype(p.dtype, mx.floating) else p, layer.parameters())
    layer.update(floats)
    return layer
