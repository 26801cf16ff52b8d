"""QA-LoRA (Xu et al. 2023, arXiv 2309.14717): adapters that can be fused into a quantized layer without requantizing.

In mlx's affine mode the weights of a group are scale * code + offset. An adapter whose A is the same for all inputs of
a group adds one number to all weights of that group, and that goes into the offset: codes, scales and size stay the
base's (section 3.3). The remaining rounding, of offsets to their float type, is in the forward pass, and the gradient
passes straight through it. With B zero the layer is bit-identical to the base, which `quantize(dequantize(w))` is not,
so the reference is exact. docs/benchmarks/fuse.md lists what else was tried.

Such an adapter is an ordinary LoRA or DoRA adapter: mlx-lm runs it too, without that last rounding.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

from mlx_dpo.errors import UserError

# One value per group is less expressive than one per weight. With A's initial values multiplied by this, the same
# learning rate gives at least the margin that it gives without --fuse-bits (on held-out pairs of the bundled set).
INIT_SCALE = 1.4


class QALoRALinear(LoRALinear):
    """mlx-lm's LoRA layer, computed as the layer that will be fused of it."""

    def __call__(self, x: mx.array) -> mx.array:
        """Map inputs [..., in] to outputs [..., out]."""
        y = _fused(self, x)
        whole, dropped = (self.scale * (pooled @ _a(self) @ self.lora_b) for pooled in _pooled(self, x))
        return y + _only_gradient(dropped, whole).astype(y.dtype)


class QADoRALinear(DoRALinear):
    """mlx-lm's DoRA layer, computed as the layer that will be fused of it: its scales are multiplied, row by row."""

    def __call__(self, x: mx.array) -> mx.array:
        """Map inputs [..., in] to outputs [..., out]."""
        y, factor = _fused(self, x), _row_factor(self)
        plain = mx.stop_gradient((y - self.linear.get("bias", 0)) / factor)
        whole, dropped = (self.scale * (pooled @ _a(self) @ self.lora_b) for pooled in _pooled(self, x))
        moved = plain + _only_gradient(dropped, whole)
        return y + _only_gradient(factor * moved, factor * plain).astype(y.dtype)


class QALoRASwitchLinear(LoRASwitchLinear):
    """mlx-lm's LoRA layer over a mixture's experts, computed as the layer that will be fused of it."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Map inputs [..., in] to the outputs [..., out] of the experts that `indices` selects."""
        y = _fused(self, x, indices, sorted_indices)
        experts: dict[str, Any] = {"rhs_indices": indices, "sorted_indices": sorted_indices}
        b = self.lora_b.swapaxes(-1, -2)
        low = (mx.gather_mm(pooled, _a(self), **experts) for pooled in _pooled(self, x))
        whole, dropped = (self.scale * mx.gather_mm(hidden, b, **experts) for hidden in low)
        return y + _only_gradient(dropped, whole).astype(y.dtype)


QA_LORA_CLASSES: dict[type, type] = {
    LoRALinear: QALoRALinear,
    DoRALinear: QADoRALinear,
    LoRASwitchLinear: QALoRASwitchLinear,
}


def is_qa_lora(module: nn.Module) -> bool:
    """Whether an adapted layer computes what will be fused."""
    return type(module) in QA_LORA_CLASSES.values()


def convert_to_qa_lora(model: nn.Module, bits: int) -> None:
    """Convert a model's fresh adapters to layers that compute what will be fused.

    Args:
        model: its mlx-lm adapters are converted in place.
        bits: those of the adapted layers (the fewest, if some have more).

    Raises:
        UserError: a layer has no offsets to move, or other bits.
    """
    adapted = [(name, module) for name, module in model.named_modules() if "lora_a" in module]
    for name, module in adapted:
        _require_offsets(name, module)
    fewest = min(module.linear.bits for _, module in adapted)
    if bits != fewest:
        hint = f"With --fuse-bits {fewest} the fused model has the base's own size and keeps the whole margin."
        raise UserError(f"the model's layers have {fewest} bits, not {bits}", field="fuse_bits", hint=hint)
    for _, module in adapted:
        module.__class__ = QA_LORA_CLASSES[type(module)]
        a, size, inputs = module.lora_a, module.linear.group_size, 0 if module.lora_a.ndim == 2 else 2
        first = mx.take(a, mx.arange(0, a.shape[inputs], size), axis=inputs)
        module.lora_a = INIT_SCALE * mx.repeat(first, size, axis=inputs)


def fused_group_parameters(module: nn.Module) -> tuple[mx.array, mx.array]:
    """(scales, offsets) of the layer that a QA-LoRA adapter is fused to; its codes are the base's.

    In the base's float type and shape: [out, groups], or [experts, out, groups].
    """
    linear = module.linear
    scales, offsets = linear.scales, linear.biases.astype(mx.float32) + _moved(module)
    if isinstance(module, DoRALinear):
        factor = _row_factor(module)[:, None]
        scales, offsets = scales * factor, offsets * factor
    return scales.astype(linear.scales.dtype), offsets.astype(linear.biases.dtype)


def _require_offsets(name: str, module: nn.Module) -> None:
    if type(module) not in QA_LORA_CLASSES:
        hint = "Name others with --lora-keys, or train without --fuse-bits."
        raise UserError(f"{name} can't be trained so, being no linear layer", field="fuse_bits", hint=hint)
    linear = module.linear
    if "scales" not in linear:
        hint = "Leave --fuse-bits out: fused without rounding, as `mlx-dpo fuse` does here, it keeps all."
        raise UserError(f"{name} is not quantized, so nothing will be rounded", field="fuse_bits", hint=hint)
    if linear.mode != "affine":
        hint = "Train without --fuse-bits; `mlx-dpo fuse` then finds the bits that keep the margin."
        message = f"{name} is quantized in mode {linear.mode}, whose groups have no offset to train"
        raise UserError(message, field="fuse_bits", hint=hint)


def _fused(module: nn.Module, x: mx.array, *others: Any) -> mx.array:
    """What the fused layer gives, and its gradient with respect to x alone."""
    linear = module.linear
    base = linear.scales, linear.biases
    linear.scales, linear.biases = (mx.stop_gradient(part) for part in fused_group_parameters(module))
    try:
        return linear(x, *others)
    finally:
        linear.scales, linear.biases = base


def _only_gradient(output: mx.array, value: mx.array) -> mx.array:
    """Zero, apart from dropout, with the gradient of `output`."""
    return output - mx.stop_gradient(value)


def _pooled(module: nn.Module, x: mx.array) -> list[mx.array]:
    """Sums of the inputs over each group, [..., groups], float32: of all of them, and with dropout; constants."""
    x, size = mx.stop_gradient(x), module.linear.group_size
    return [mx.unflatten(v.astype(mx.float32), -1, (-1, size)).sum(-1) for v in (x, module.dropout(x))]


def _a(module: nn.Module) -> mx.array:
    """A of the groups, [groups, rank], or [experts, groups, rank]. A mean hands all inputs of one the same gradient."""
    a = module.lora_a if module.lora_a.ndim == 2 else module.lora_a.swapaxes(-1, -2)
    return mx.unflatten(a, -2, (-1, module.linear.group_size)).mean(-2)


def _moved(module: nn.Module) -> mx.array:
    """Per-group weight update of the adapter, shaped like the offsets, float32."""
    b = module.lora_b if module.lora_b.ndim == 3 else module.lora_b.T
    return module.scale * (b @ _a(module).swapaxes(-1, -2)).astype(mx.float32)


def _row_factor(module: DoRALinear) -> mx.array:
    """DoRA's magnitude by the norm of each row, [out]; the norm is a constant to the gradient (Liu et al., eq. 11)."""
    weight = module._dequantized_weight().astype(mx.float32)
    added = mx.repeat(_moved(module), module.linear.group_size, axis=-1)
    return module.m / mx.stop_gradient(mx.linalg.norm(weight + added, axis=1))
