"""LoRA layers on a rank's share of a layer, each with the whole adapter, of which it computes with what goes with that.

Of one layer each rank has some outputs, so it takes these columns of B. Of the next it has the inputs that are these,
so it takes those rows of A, and what it gives is a part of a sum over ranks: W x and B A x join in one.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import sum_gradients
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

OUTPUT_AXIS, INPUT_AXIS = -2, -1  # axes of a layer's weights, along which it can be shared out

IndexRanges = list[tuple[int, int]]  # from and to, one after the other


class CopyToParallelRegion:
    """Where what all ranks have alike goes into what each has a share of: backwards, it is summed over ranks.

    Once for all layers that it goes into, as queries, keys and values are made of the same.
    """

    def __init__(self, group: mx.distributed.Group) -> None:
        self.sum_gradients = sum_gradients(group)
        self._last: weakref.ref[mx.array] | None = None
        self._entered: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if self._entered is None or self._last is None or self._last() is not x:
            self._entered, self._last = self.sum_gradients(x), weakref.ref(x, self._let_go)
        return self._entered

    def _let_go(self, gone: weakref.ref[mx.array]) -> None:
        if gone is self._last:
            self._entered = self._last = None


@dataclass(frozen=True)
class LayerShard:
    """What of a layer is a rank's own.

    Attributes:
        axis: what of the layer is shared out, `OUTPUTS` or `INPUTS`.
        runs: which of them are the rank's.
        joins: whether the layer itself sums over ranks; else the block that it is in does.
    """

    group: mx.distributed.Group
    entrance: CopyToParallelRegion
    axis: int
    ranges: IndexRanges
    all_reduces: bool

    def slice_tensor(self, tensor: mx.array, axis: int) -> mx.array:
        """A rank's own part of a whole tensor."""
        before = (slice(None),) * (axis % tensor.ndim)
        parts = [tensor[(*before, slice(*run))] for run in self.ranges]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)

    def copy_input(self, x: mx.array) -> mx.array:
        """A layer's input, see `Entrance`."""
        return self.entrance(x) if self.all_reduces and self.axis == OUTPUT_AXIS else x

    def reduce_output(self, y: mx.array) -> mx.array:
        """A layer's output: all of the sum."""
        return mx.distributed.all_sum(y, group=self.group) if self.all_reduces and self.axis == INPUT_AXIS else y

    def apply_dropout(self, dropout: nn.Dropout, x: mx.array, inputs: int) -> mx.array:
        """What dropout leaves of a rank's inputs: what it would on one machine, where there are `inputs` of them."""
        if self.axis == OUTPUT_AXIS:
            return dropout(x)
        if not dropout.training or dropout._p_1 == 1:
            return x
        return x * self.slice_tensor(dropout(mx.ones((*x.shape[:-1], inputs), x.dtype)), -1)


class ShardedLoRALinear(LoRALinear):
    """mlx-lm's LoRA layer on a rank's share of a linear layer; `share` says what that is."""

    def __call__(self, x: mx.array) -> mx.array:
        share: LayerShard = self.share
        a, b = self.lora_a, self.lora_b
        a, b = (a, share.slice_tensor(b, 1)) if share.axis == OUTPUT_AXIS else (share.slice_tensor(a, 0), b)
        x = share.copy_input(x)
        y = _product(self.linear, x) if share.all_reduces else self.linear(x)
        low = self.scale * (share.apply_dropout(self.dropout, x, self.lora_a.shape[0]) @ a)
        y = mx.addmm(y, low, b) if low.dtype == y.dtype else y + (low @ b).astype(y.dtype)
        y = share.reduce_output(y)
        return y + self.linear.bias if share.all_reduces and "bias" in self.linear else y


class ShardedLoRASwitchLinear(LoRASwitchLinear):
    """mlx-lm's LoRA layer on a rank's share of each of a mixture's experts; their block sums over ranks."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        share: LayerShard = self.share
        a, b = self.lora_a, self.lora_b
        a, b = (a, share.slice_tensor(b, 1)) if share.axis == OUTPUT_AXIS else (share.slice_tensor(a, 2), b)
        experts: dict[str, Any] = {"rhs_indices": indices, "sorted_indices": sorted_indices}
        y = self.linear(x, indices, sorted_indices=sorted_indices)
        low = mx.gather_mm(share.apply_dropout(self.dropout, x, self.lora_a.shape[2]), a.swapaxes(-1, -2), **experts)
        return y + (self.scale * mx.gather_mm(low, b.swapaxes(-1, -2), **experts)).astype(y.dtype)


SHARDED_TYPES: dict[type, type] = {LoRALinear: ShardedLoRALinear, LoRASwitchLinear: ShardedLoRASwitchLinear}


def is_sharded_adapter(module: nn.Module) -> bool:
    """Whether an adapted layer is one of these."""
    return type(module) in SHARDED_TYPES.values()


def _product(linear: nn.Module, x: mx.array) -> mx.array:
    """Without the bias, and without summing over ranks."""
    if "scales" not in linear:
        return x @ linear.weight.T
    settings = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    return mx.quantized_matmul(x, linear.weight, linear.scales, linear.get("biases"), transpose=True, **settings)
