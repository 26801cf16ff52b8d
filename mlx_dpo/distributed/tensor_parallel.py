"""Tensor parallelism: every rank holds a part of the frozen weights and the whole adapter.

mlx-lm's own `shard` splits the weights as Megatron-LM does (Shoeybi et al. 2019, arXiv 1909.08053, section 3). An
adapter is small, so its tensors are replicated, under the names and with the initial values they have on a single
machine: saving, resuming, clipping and swapping them needs no code of its own.

A rank's gradient is its part of a sum: the all-reduced gradient is that of a single machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.nn.layers import distributed
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.distributed.shard_gradients import MAX_RELATIVE_ERROR, backward_relative_error, fix_backward
from mlx_dpo.distributed.sharded_lora import (
    INPUT_AXIS,
    SHARDED_TYPES,
    CopyToParallelRegion,
    IndexRanges,
    LayerShard,
    is_sharded_adapter,
)
from mlx_dpo.errors import UserError
from mlx_dpo.utils.random_state import random_state
from mlx_dpo.utils.tensor_digest import tensor_digest

FIELD = "tensor_parallel"
ALTERNATIVE = "Train without --tensor-parallel, or another model."
LINEAR_TYPES = (
    distributed.AllToShardedLinear,
    distributed.QuantizedAllToShardedLinear,
    distributed.ShardedToAllLinear,
    distributed.QuantizedShardedToAllLinear,
)

# By the id of a rank's part of a weight: the part (held, so that its id stays its own), the axis it is split along, and
# the ranges it has of that axis.
WeightSplits = dict[int, tuple[mx.array, int, IndexRanges]]


@dataclass(frozen=True)
class TensorParallelism:
    """The state of a model whose weights are sharded across ranks.

    Attributes:
        group: the ranks.
        tensor_digests: of each frozen tensor, by name, the `tensor_digest` it has on a single machine.
        replicated: names of trained tensors whose whole gradient every rank has.
        num_parameters: parameters of the whole model.
    """

    group: mx.distributed.Group
    tensor_digests: Mapping[str, str]
    replicated: frozenset[str]
    num_parameters: int

    def scale_replicated(self, gradients: Any) -> Any:
        """Scale a rank's tree of gradients so that the sum over ranks is the gradient of a single machine."""
        size = self.group.size()
        return tree_map_with_path(lambda name, v: v / size if name in self.replicated else v, gradients)

    def all_min(self, value: float) -> int:
        """The smallest of all ranks' values, rounded down: ranks that decide differently would wait forever."""
        smallest: Any = mx.distributed.all_min(mx.array(math.floor(value), mx.int64), group=self.group).item()
        return smallest

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Rank 0's values, float64, bit for bit."""
        bits = mx.array(values.astype(np.float64).view(np.int64))
        sent = bits if self.group.rank() == 0 else mx.zeros_like(bits)
        return np.array(mx.distributed.all_sum(sent, group=self.group)).view(np.float64)


def shard_model(model: nn.Module, spec: AdapterSpec, group: mx.distributed.Group) -> TensorParallelism:
    """Split the frozen weights of a model with adapters over ranks.

    If the model was loaded lazily, no more than one whole tensor is in memory at a time. All ranks call it with the
    same adapter.

    Args:
        model: with its adapters attached; changed in place, and unusable after an error.
        spec: settings of the adapters.
        group: the ranks.

    Raises:
        UserError: the model or the adapter can't be split; raised on all ranks.
    """
    from mlx_lm.utils import get_total_parameters

    _check_supported(model, spec, group.size())
    trainable, num_parameters = trainable_tensors(model), get_total_parameters(model)
    # Copies of handles, not of data: gpt_oss divides a bias in place.
    whole_tensors = {name: copy(v) for name, v in tree_flatten(model.parameters()) if name not in trainable}
    adapted = {name: module for name, module in model.named_modules() if "lora_a" in module}
    shapes = {name: module[_base_key(module)].weight.shape for name, module in adapted.items()}
    model.update_modules(tree_unflatten([(name, module[_base_key(module)]) for name, module in adapted.items()]))
    splits = _shard_by_mlx_lm(model, group)
    model.freeze()
    copy_to_parallel, modules = CopyToParallelRegion(group), dict(model.named_modules())
    for name, module in adapted.items():
        layer = module[_base_key(module)] = modules[name]
        if id(layer.weight) in splits and type(module) in SHARDED_TYPES:
            module.__class__ = SHARDED_TYPES[type(module)]
            module.layer_shard = _layer_shard(layer, splits, copy_to_parallel, group)
        elif layer.weight.shape != shapes[name]:
            hint = "Choose other layers with --lora-keys, or train without --tensor-parallel."
            raise UserError(f"{name} can't be trained while it is split over ranks", field=FIELD, hint=hint)
    model.update_modules(tree_unflatten(list(adapted.items())))
    fix_backward(model, group)
    replicated = (f"{name}.{key}" for name in _replicated_adapters(model, adapted) for key in ("lora_a", "lora_b"))
    return TensorParallelism(group, _evaluate_shards(model, whole_tensors), frozenset(replicated), num_parameters)


def _check_supported(model: nn.Module, spec: AdapterSpec, size: int) -> None:
    if spec.fine_tune_type != "lora":
        message = f"tensor parallelism supports lora, not {spec.fine_tune_type}"
        raise UserError(message, field=FIELD, hint="Use --fine-tune-type lora, or leave --tensor-parallel out.")
    if spec.fuse_bits is not None:
        hint = "Leave one of the two out; `mlx-dpo fuse` finds the bits that keep the margin."
        raise UserError("--tensor-parallel can't be combined with --fuse-bits", field=FIELD, hint=hint)
    if not hasattr(model, "shard"):
        raise UserError(
            f"mlx-lm can't split a model of this type ({_model_type(model)})", field=FIELD, hint=ALTERNATIVE
        )
    heads = _head_counts(model)
    if any(count % size for count in heads.values()):
        counts = " and ".join(f"{count} {kind}" for kind, count in heads.items())
        possible = [str(n) for n in range(2, min(heads.values()) + 1) if not math.gcd(*heads.values()) % n]
        hint = f"Use {' or '.join(possible)} ranks." if possible else ALTERNATIVE
        raise UserError(f"the model has {counts}, which can't be split over {size} ranks", field=FIELD, hint=hint)


def _model_type(model: nn.Module) -> str:
    return type(model).__module__.rpartition(".")[2]


def _head_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of heads by kind that the model's config states."""
    config = vars(model.args) if hasattr(model, "args") else {}
    text_config = config.get("text_config") or {}
    config = {**config, **(text_config if isinstance(text_config, dict) else vars(text_config))}
    kinds = {"attention heads": "num_attention_heads", "key-value heads": "num_key_value_heads"}
    return {kind: config[key] for kind, key in kinds.items() if isinstance(config.get(key), int)}


def _base_key(module: nn.Module) -> str:
    """The attribute of an adapter layer that holds the layer it adapts."""
    return "embedding" if "embedding" in module else "linear"


def _shard_by_mlx_lm(model: nn.Module, group: mx.distributed.Group) -> WeightSplits:
    """Have mlx-lm split the model.

    New layers draw random numbers; the random state is restored, so that dropout is that of a single machine.
    """
    state = random_state()
    try:
        with _recorded_splits() as splits:
            model.shard(group)
    except (ValueError, AssertionError, AttributeError, TypeError, IndexError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        message = f"mlx-lm can't split this model over {group.size()} ranks: {lines[0]}"
        raise UserError(message, field=FIELD, hint="Use fewer ranks, or train without --tensor-parallel.") from error
    finally:
        mx.random.seed(state)
    return splits


@contextmanager
def _recorded_splits() -> Iterator[WeightSplits]:
    """Within this context, record how mlx splits weights: a sharded layer doesn't tell which part it has."""
    original, splits = distributed._shard, WeightSplits()

    def recording(parameters: dict[str, Any], predicate: Any, group: mx.distributed.Group) -> dict[str, Any]:
        shards = original(parameters, predicate, group)
        weight = parameters.get("weight")
        split = predicate("weight", weight) if isinstance(weight, mx.array) else None
        if weight is None or split is None:
            return shards
        axis = (split if isinstance(split, int) else split[0]) % weight.ndim
        # The inputs of a quantized layer are counted in groups, since its weight packs several into a number.
        counted = parameters["scales"] if axis == weight.ndim - 1 and "scales" in parameters else weight
        indices = mx.expand_dims(mx.arange(counted.shape[axis]), [i for i in range(weight.ndim) if i != axis])
        own = np.array(original({"weight": indices}, predicate, group)["weight"])
        splits[id(shards["weight"])] = shards["weight"], axis - weight.ndim, _index_ranges(own.reshape(-1))
        return shards

    distributed._shard = recording
    try:
        yield splits
    finally:
        distributed._shard = original


def _index_ranges(indices: np.ndarray) -> IndexRanges:
    """Ascending indices as ranges without gaps."""
    starts = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(indices, starts)]


def _layer_shard(
    layer: nn.Module, splits: WeightSplits, copy_to_parallel: CopyToParallelRegion, group: mx.distributed.Group
) -> LayerShard:
    _, axis, ranges = splits[id(layer.weight)]
    if axis == INPUT_AXIS and "scales" in layer:
        ranges = [(start * layer.group_size, stop * layer.group_size) for start, stop in ranges]
    return LayerShard(group, copy_to_parallel, axis, ranges, all_reduces=isinstance(layer, LINEAR_TYPES))


def _replicated_adapters(model: nn.Module, adapted: Mapping[str, nn.Module]) -> list[str]:
    """Names of adapted layers that all ranks compute identically, with the same gradient of their outputs.

    A whole layer inside a block that does the all-reduce itself, as a mixture of experts does, is not among them: the
    router gets only part of its gradient on each rank, from that rank's experts.
    """
    blocks = [m for layer in model.layers for m in layer.modules() if getattr(m, "sharding_group", None) is not None]
    inside = {id(module) for block in blocks for module in block.modules()}
    return [name for name, module in adapted.items() if not is_sharded_adapter(module) and id(module) not in inside]


def _evaluate_shards(model: nn.Module, whole_tensors: dict[str, mx.array]) -> dict[str, str]:
    """Evaluate a rank's tensors one by one, and empty `whole_tensors`. Returns the digests of the whole tensors."""
    digests = {}
    for name, shard in tree_flatten(model.parameters()):
        if name in whole_tensors:
            digests[name] = tensor_digest(whole_tensors.pop(name))
        mx.eval(shard)
    return digests


def check_gradients(model: nn.Module, parallelism: TensorParallelism) -> None:
    """Check that the backward pass through a sharded model loses no gradient, see `shard_gradients`.

    Raises:
        UserError: it loses some, or this can't be checked; raised on all ranks.
    """
    was_training = model.training
    model.eval()  # without dropout
    try:
        error = backward_relative_error(model)
    except (ValueError, RuntimeError) as exception:
        if not re.search("NYI|[Nn]ot implemented", str(exception)):  # mlx lacks a forward-mode derivative
            raise
        message = f"the gradients of a model of this type ({_model_type(model)}) can't be checked: {exception}"
        raise UserError(message, field=FIELD, hint=ALTERNATIVE) from exception
    finally:
        model.train(was_training)
    if not parallelism.all_min(error <= MAX_RELATIVE_ERROR):
        message = f"mlx-lm's sharding of a model of type {_model_type(model)} loses gradients"
        raise UserError(message, field=FIELD, hint=ALTERNATIVE)
