"""A model over several machines: each holds its share of the frozen weights, and all of them the whole adapter.

mlx-lm's own `shard` cuts the weights up as Megatron-LM does (Shoeybi et al. 2019, arXiv 1909.08053, section 3). An
adapter is small, so its tensors stay whole and equal on all ranks, under the names and with the first values they have
on one machine: what saves, resumes, clips or swaps them needs to know nothing of this.

A rank's gradient is what its share adds to the whole, so that the sum over ranks is the gradient of one machine.
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
INSTEAD = "Train without --tensor-parallel, or another model."
JOINING = (
    distributed.AllToShardedLinear,
    distributed.QuantizedAllToShardedLinear,
    distributed.ShardedToAllLinear,
    distributed.QuantizedShardedToAllLinear,
)

Cuts = dict[
    int, tuple[mx.array, int, IndexRanges]
]  # by a part's id: the part, the axis it is of, and where it was there


@dataclass(frozen=True)
class TensorParallelism:
    """What there is to know of a model whose weights are shared out over a group.

    Attributes:
        whole: of each frozen tensor, by name, what `fingerprint` says of it as it is on one machine.
        alike: names of trained tensors whose whole gradient every rank has.
        parameters: how many the model has in all, over all ranks.
    """

    group: mx.distributed.Group
    tensor_digests: Mapping[str, str]
    replicated: frozenset[str]
    num_parameters: int

    def scale_replicated(self, gradients: Any) -> Any:
        """A rank's gradients as they add up, over ranks, to those of one machine."""
        size = self.group.size()
        return tree_map_with_path(lambda name, v: v / size if name in self.replicated else v, gradients)

    def all_min(self, value: float) -> int:
        """The smallest of all ranks' values, rounded down: ranks that decide differently would wait for ever."""
        least: Any = mx.distributed.all_min(mx.array(math.floor(value), mx.int64), group=self.group).item()
        return least

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """The first rank's values, float64, to the bit."""
        bits = mx.array(values.astype(np.float64).view(np.int64))
        sent = bits if self.group.rank() == 0 else mx.zeros_like(bits)
        return np.array(mx.distributed.all_sum(sent, group=self.group)).view(np.float64)


def shard_model(model: nn.Module, spec: AdapterSpec, group: mx.distributed.Group) -> TensorParallelism:
    """Share out a model that has its adapters on, best a lazily loaded one: never more than one tensor is whole.

    All ranks call it alike, with the same adapter. Raises `UserError`, on all ranks, where the model or what is trained
    of it can't be shared out; the model is then good for nothing.
    """
    from mlx_lm.utils import get_total_parameters

    _require_possible(model, spec, group.size())
    trained, parameters = trainable_tensors(model), get_total_parameters(model)
    # Copies of handles, that is: gpt_oss divides a bias in place.
    wholes = {name: copy(v) for name, v in tree_flatten(model.parameters()) if name not in trained}
    adapted = {name: module for name, module in model.named_modules() if "lora_a" in module}
    shapes = {name: module[_inner(module)].weight.shape for name, module in adapted.items()}
    model.update_modules(tree_unflatten([(name, module[_inner(module)]) for name, module in adapted.items()]))
    cuts = _cut_up(model, group)
    model.freeze()
    entrance, modules = CopyToParallelRegion(group), dict(model.named_modules())
    for name, module in adapted.items():
        layer = module[_inner(module)] = modules[name]
        if id(layer.weight) in cuts and type(module) in SHARDED_TYPES:
            module.__class__ = SHARDED_TYPES[type(module)]
            module.share = _share(layer, cuts, group, entrance)
        elif layer.weight.shape != shapes[name]:
            hint = "Name other layers with --lora-keys, or train without --tensor-parallel."
            raise UserError(f"{name} can't be trained where it is shared out", field=FIELD, hint=hint)
    model.update_modules(tree_unflatten(list(adapted.items())))
    fix_backward(model, group)
    alike = frozenset(f"{name}.{which}" for name in _alike(model, adapted) for which in ("lora_a", "lora_b"))
    return TensorParallelism(group, _let_go(model, wholes), alike, parameters)


def _require_possible(model: nn.Module, spec: AdapterSpec, size: int) -> None:
    if spec.fine_tune_type != "lora":
        message = f"a model that is shared out can be trained by lora, and not by {spec.fine_tune_type}"
        raise UserError(message, field=FIELD, hint="Use --fine-tune-type lora, or leave --tensor-parallel out.")
    if spec.fuse_bits is not None:
        hint = "Leave one of the two out; `mlx-dpo fuse` finds the bits that keep the margin."
        raise UserError("an adapter can't be trained as it will be fused (--fuse-bits)", field=FIELD, hint=hint)
    if not hasattr(model, "shard"):
        raise UserError(f"mlx-lm can't share out a model of this type ({_family(model)})", field=FIELD, hint=INSTEAD)
    heads = _heads(model)
    if any(count % size for count in heads.values()):
        counts = " and ".join(f"{count} {kind}" for kind, count in heads.items())
        possible = [str(n) for n in range(2, min(heads.values()) + 1) if not math.gcd(*heads.values()) % n]
        hint = f"They can be by {' or '.join(possible)}." if possible else INSTEAD
        raise UserError(f"the model has {counts}, which can't be shared by {size} ranks", field=FIELD, hint=hint)


def _family(model: nn.Module) -> str:
    return type(model).__module__.rpartition(".")[2]


def _heads(model: nn.Module) -> dict[str, int]:
    """How many there are of each kind, as far as the model's settings say."""
    settings = vars(model.args) if hasattr(model, "args") else {}
    inner = settings.get("text_config") or {}
    settings = {**settings, **(inner if isinstance(inner, dict) else vars(inner))}
    kinds = {"attention heads": "num_attention_heads", "key-value heads": "num_key_value_heads"}
    return {kind: settings[name] for kind, name in kinds.items() if isinstance(settings.get(name), int)}


def _inner(module: nn.Module) -> str:
    """The name, in an adapter's layer, of what it adapts."""
    return "embedding" if "embedding" in module else "linear"


def _cut_up(model: nn.Module, group: mx.distributed.Group) -> Cuts:
    """Have mlx-lm do it. Returns where the weights that are a rank's own come from.

    The random numbers, which new layers draw, stand where they stood: dropout is to be one machine's.
    """
    seed = random_state()
    try:
        with _noting_cuts() as cuts:
            model.shard(group)
    except (ValueError, AssertionError, AttributeError, TypeError, IndexError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        message = f"mlx-lm can't share out this model over {group.size()} ranks: {lines[0]}"
        raise UserError(message, field=FIELD, hint="Try fewer, or train without --tensor-parallel.") from error
    finally:
        mx.random.seed(seed)
    return cuts


@contextmanager
def _noting_cuts() -> Iterator[Cuts]:
    """Within, what mlx cuts up is noted: a sharded layer doesn't say where its parts come from."""
    plain, cuts = distributed._shard, Cuts()

    def noting(parameters: dict[str, Any], where: Any, group: mx.distributed.Group) -> dict[str, Any]:
        parts = plain(parameters, where, group)
        weight = parameters.get("weight")
        cut = where("weight", weight) if isinstance(weight, mx.array) else None
        if weight is None or cut is None:
            return parts
        axis = (cut if isinstance(cut, int) else cut[0]) % weight.ndim
        # Inputs of a quantized layer are counted by groups: its weight has several in a number.
        by = parameters["scales"] if axis == weight.ndim - 1 and "scales" in parameters else weight
        places = mx.expand_dims(mx.arange(by.shape[axis]), [i for i in range(weight.ndim) if i != axis])
        own = np.array(plain({"weight": places}, where, group)["weight"])
        cuts[id(parts["weight"])] = parts["weight"], axis - weight.ndim, _runs(own.reshape(-1))
        return parts

    distributed._shard = noting
    try:
        yield cuts
    finally:
        distributed._shard = plain


def _runs(places: np.ndarray) -> IndexRanges:
    """Rising numbers as runs without gaps."""
    ends = np.flatnonzero(np.diff(places) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(places, ends)]


def _share(layer: nn.Module, cuts: Cuts, group: mx.distributed.Group, entrance: CopyToParallelRegion) -> LayerShard:
    _, axis, runs = cuts[id(layer.weight)]
    if axis == INPUT_AXIS and "scales" in layer:
        runs = [(start * layer.group_size, stop * layer.group_size) for start, stop in runs]
    return LayerShard(group, entrance, axis, runs, all_reduces=isinstance(layer, JOINING))


def _alike(model: nn.Module, adapted: Mapping[str, nn.Module]) -> list[str]:
    """Names of adapted layers that all ranks compute alike, and whose outputs' gradient they have alike.

    In a block that sums over ranks itself, as mixtures of experts do, a layer that all have whole (a router) gets from
    each rank's experts that rank's share of the gradient.
    """
    blocks = [m for layer in model.layers for m in layer.modules() if getattr(m, "sharding_group", None) is not None]
    inside = {id(module) for block in blocks for module in block.modules()}
    return [name for name, module in adapted.items() if not is_sharded_adapter(module) and id(module) not in inside]


def _let_go(model: nn.Module, wholes: dict[str, mx.array]) -> dict[str, str]:
    """Make a rank's own tensors, one after the other; `wholes` is emptied. Returns what is to be said of the whole."""
    said = {}
    for name, own in tree_flatten(model.parameters()):
        if name in wholes:
            said[name] = tensor_digest(wholes.pop(name))
        mx.eval(own)
    return said


def check_gradients(model: nn.Module, shards: TensorParallelism) -> None:
    """Raises `UserError`, on all ranks, where a backward pass loses anything; see `shard_gradients`."""
    mode = model.training
    model.eval()  # nothing is dropped
    try:
        lost = backward_relative_error(model)
    except (ValueError, RuntimeError) as error:
        if not re.search("NYI|[Nn]ot implemented", str(error)):  # mlx has no forward derivative of something in it
            raise
        message = f"whether gradients come through a model of this type ({_family(model)}) can't be tried: {error}"
        raise UserError(message, field=FIELD, hint=INSTEAD) from error
    finally:
        model.train(mode)
    if not shards.all_min(lost <= MAX_RELATIVE_ERROR):
        message = f"gradients are lost on the way through a model of type {_family(model)} as mlx-lm shares it out"
        raise UserError(message, field=FIELD, hint=INSTEAD)
