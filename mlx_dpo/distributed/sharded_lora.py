"""LoRA on linear layers whose weights are split over ranks; every rank holds the whole adapter.

As in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053), a column-parallel layer computes some of the outputs on each
rank, from the whole input, and uses those columns of B. The row-parallel layer behind it has these as its inputs, uses
those rows of A, and its outputs are partial sums: W x and B A x are added up over ranks in one all-reduce.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import sum_gradients
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

OUTPUT_AXIS, INPUT_AXIS = -2, -1  # of a layer's weights: split by outputs (column-parallel), by inputs (row-parallel)

IndexRanges = list[tuple[int, int]]  # (start, stop), ascending


class CopyToParallelRegion:
    """Identity forward, all-reduce of the gradient backward: where a replicated input enters column-parallel layers.

    Layers with the same input, as the query, key and value projections, share one all-reduce.
    """

    def __init__(self, group: mx.distributed.Group) -> None:
        """group: the ranks that the layers are split over."""
        self.sum_gradients = sum_gradients(group)
        self._input: weakref.ref[mx.array] | None = None
        self._copy: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """The input, unchanged."""
        if self._copy is None or self._input is None or self._input() is not x:
            self._copy, self._input = self.sum_gradients(x), weakref.ref(x, self._forget)
        return self._copy

    def _forget(self, dead: weakref.ref[mx.array]) -> None:
        if dead is self._input:
            self._input = self._copy = None


@dataclass(frozen=True)
class LayerShard:
    """The part of a layer that is on this rank.

    Attributes:
        group: the ranks that the layer is split over.
        copy_to_parallel: shared by the model's column-parallel layers.
        axis: `OUTPUT_AXIS` (column-parallel) or `INPUT_AXIS` (row-parallel).
        ranges: the outputs or inputs that this rank has.
        all_reduces: whether the layer itself does the all-reduce; else its block does.
    """

    group: mx.distributed.Group
    copy_to_parallel: CopyToParallelRegion
    axis: int
    ranges: IndexRanges
    all_reduces: bool

    def slice_tensor(self, tensor: mx.array, axis: int) -> mx.array:
        """This rank's part of a whole tensor along an axis."""
        before = (slice(None),) * (axis % tensor.ndim)
        parts = [tensor[(*before, slice(*part))] for part in self.ranges]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)

    def copy_input(self, x: mx.array) -> mx.array:
        """A layer's input, see `CopyToParallelRegion`."""
        return self.copy_to_parallel(x) if self.all_reduces and self.axis == OUTPUT_AXIS else x

    def reduce_output(self, y: mx.array) -> mx.array:
        """A layer's output: of a row-parallel layer the sum over ranks."""
        return mx.distributed.all_sum(y, group=self.group) if self.all_reduces and self.axis == INPUT_AXIS else y

    def apply_dropout(self, dropout: nn.Dropout, x: mx.array, num_inputs: int) -> mx.array:
        """Drop the same inputs as on a single machine.

        Args:
            dropout: the layer's dropout.
            x: this rank's inputs, [..., inputs].
            num_inputs: inputs of the whole layer.
        """
        if self.axis == OUTPUT_AXIS:
            return dropout(x)
        if not dropout.training or dropout._p_1 == 1:
            return x
        return x * self.slice_tensor(dropout(mx.ones((*x.shape[:-1], num_inputs), x.dtype)), -1)


class ShardedLoRALinear(LoRALinear):
    """mlx-lm's LoRA layer on a part of a linear layer; its attribute `layer_shard` says which."""

    def __call__(self, x: mx.array) -> mx.array:
        """[..., inputs here] to [..., outputs here]."""
        shard: LayerShard = self.layer_shard
        a, b = self.lora_a, self.lora_b
        a, b = (a, shard.slice_tensor(b, 1)) if shard.axis == OUTPUT_AXIS else (shard.slice_tensor(a, 0), b)
        x = shard.copy_input(x)
        y = _matmul(self.linear, x) if shard.all_reduces else self.linear(x)
        low_rank = self.scale * (shard.apply_dropout(self.dropout, x, self.lora_a.shape[0]) @ a)
        y = mx.addmm(y, low_rank, b) if low_rank.dtype == y.dtype else y + (low_rank @ b).astype(y.dtype)
        y = shard.reduce_output(y)
        return y + self.linear.bias if shard.all_reduces and "bias" in self.linear else y


class ShardedLoRASwitchLinear(LoRASwitchLinear):
    """mlx-lm's LoRA layer on a part of every expert of a mixture; the experts' block does the all-reduce."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """[..., inputs here] to [..., outputs here], by the experts `indices`."""
        shard: LayerShard = self.layer_shard
        a, b = self.lora_a, self.lora_b
        a, b = (a, shard.slice_tensor(b, 1)) if shard.axis == OUTPUT_AXIS else (shard.slice_tensor(a, 2), b)
        experts: dict[str, Any] = {"rhs_indices": indices, "sorted_indices": sorted_indices}
        y = self.linear(x, indices, sorted_indices=sorted_indices)
        x = shard.apply_dropout(self.dropout, x, self.lora_a.shape[2])
        low_rank = mx.gather_mm(x, a.swapaxes(-1, -2), **experts)
        return y + (self.scale * mx.gather_mm(low_rank, b.swapaxes(-1, -2), **experts)).astype(y.dtype)


SHARDED_TYPES: dict[type, type] = {LoRALinear: ShardedLoRALinear, LoRASwitchLinear: ShardedLoRASwitchLinear}


def is_sharded_adapter(module: nn.Module) -> bool:
    """Whether an adapted layer is split over ranks."""
    return type(module) in SHARDED_TYPES.values()


def _matmul(linear: nn.Module, x: mx.array) -> mx.array:
    """W x, without the bias and the all-reduce."""
    if "scales" not in linear:
        return x @ linear.weight.T
    settings = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    return mx.quantized_matmul(x, linear.weight, linear.scales, linear.get("biases"), transpose=True, **settings)
