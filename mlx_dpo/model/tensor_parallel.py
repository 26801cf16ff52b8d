"""A model over several machines: each holds its share of the frozen weights, and all of them the whole adapter.

mlx-lm's own `shard` cuts the weights up as Megatron-LM does (Shoeybi et al. 2019, arXiv 1909.08053, section 3): of one
layer each rank has some outputs, of the next the inputs that are these, and sums over ranks join them. An adapter is
small, so its tensors stay whole and equal on all ranks, under the names and with the first values they have on one
machine: what saves, resumes, clips or swaps them needs to know nothing. In the forward pass a layer takes the columns
of B, or the rows of A, that go with its share of the weights.

A rank's gradient is what its share adds to the whole, so that the sum over ranks is the gradient of one machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.nn.layers import distributed
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

from mlx_dpo.errors import UserError
from mlx_dpo.model.fingerprint import described
from mlx_dpo.model.loading import AdapterSpec, trainable
from mlx_dpo.model.random_state import random_state

FIELD = "tensor_parallel"
INSTEAD = "Train without --tensor-parallel, or another model."
COLUMNS = (distributed.AllToShardedLinear, distributed.QuantizedAllToShardedLinear)
ROWS = (distributed.ShardedToAllLinear, distributed.QuantizedShardedToAllLinear)
UNLIKE = 0.05  # of the largest: how far apart ranks may be by rounding, 16-bit and on unlike machines

Runs = list[tuple[int, int]]  # from and to, one after the other
Cuts = dict[int, tuple[mx.array, int, Runs]]  # by a part's id: the part, the axis it is of, and where it was there


@dataclass(frozen=True)
class Shards:
    """What there is to know of a model whose weights are shared out over a group.

    Attributes:
        whole: of each frozen tensor, by name, what `fingerprint` says of it as it is on one machine.
        alike: names of trained tensors whose whole gradient every rank has.
    """

    group: mx.distributed.Group
    whole: Mapping[str, str]
    alike: frozenset[str]

    def to_sum(self, gradients: Any) -> Any:
        """A rank's gradients as they add up, over ranks, to those of one machine."""
        size = self.group.size()
        return tree_map_with_path(lambda name, v: v / size if name in self.alike else v, gradients)

    def least(self, value: float) -> int:
        """The smallest of all ranks' values, rounded down: ranks that decide differently would wait for ever."""
        return int(mx.distributed.all_min(mx.array(int(value), mx.int64), group=self.group).item())


@dataclass(frozen=True)
class Share:
    """What of a layer is a rank's own.

    Attributes:
        axis: of the adapted layer's weights, what is shared out: -2, its outputs, or -1, its inputs.
        runs: which of them.
        joins: whether the layer itself sums over ranks; else the block that it is in does.
    """

    group: mx.distributed.Group
    axis: int
    runs: Runs
    joins: bool

    def of(self, tensor: mx.array, axis: int) -> mx.array:
        """A rank's own part of a whole tensor."""
        before = (slice(None),) * (axis % tensor.ndim)
        parts = [tensor[(*before, slice(*run))] for run in self.runs]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)

    def entered(self, x: mx.array) -> mx.array:
        """What all ranks have alike, on its way into what each has a share of: backwards, it is summed."""
        return distributed.sum_gradients(self.group)(x) if self.joins and self.axis == -2 else x

    def left(self, y: mx.array) -> mx.array:
        """The other way."""
        return mx.distributed.all_sum(y, group=self.group) if self.joins and self.axis == -1 else y


class ShardedLoRALinear(LoRALinear):
    """mlx-lm's LoRA layer on a rank's share of a linear layer; `share` is its `Share`."""

    def __call__(self, x: mx.array) -> mx.array:
        share: Share = self.share
        a, b = self.lora_a, self.lora_b
        a, b = (a, share.of(b, -1)) if share.axis == -2 else (share.of(a, 0), b)
        x = share.entered(x)
        y = _product(self.linear, x) if share.joins else self.linear(x)
        low = self.scale * (_dropped(self, x, self.lora_a.shape[0]) @ a)
        y = mx.addmm(y, low, b) if low.dtype == y.dtype else y + (low @ b).astype(y.dtype)
        y = share.left(y)
        return y + self.linear.bias if share.joins and "bias" in self.linear else y


class ShardedLoRASwitchLinear(LoRASwitchLinear):
    """mlx-lm's LoRA layer on a rank's share of all of a mixture's experts; its block sums over ranks."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        share: Share = self.share
        a, b = self.lora_a, self.lora_b
        a, b = (a, share.of(b, -2)) if share.axis == -2 else (share.of(a, -1), b)
        experts: dict[str, Any] = {"rhs_indices": indices, "sorted_indices": sorted_indices}
        y = self.linear(x, indices, sorted_indices=sorted_indices)
        low = mx.gather_mm(_dropped(self, x, self.lora_a.shape[-1]), a.swapaxes(-1, -2), **experts)
        return y + (self.scale * mx.gather_mm(low, b.swapaxes(-1, -2), **experts)).astype(y.dtype)


KINDS: dict[type, type] = {LoRALinear: ShardedLoRALinear, LoRASwitchLinear: ShardedLoRASwitchLinear}


def _product(linear: nn.Module, x: mx.array) -> mx.array:
    """Without the bias, and without summing over ranks."""
    if "scales" not in linear:
        return x @ linear.weight.T
    settings = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    return mx.quantized_matmul(x, linear.weight, linear.scales, linear.get("biases"), transpose=True, **settings)


def _dropped(module: nn.Module, x: mx.array, inputs: int) -> mx.array:
    """What dropout leaves of a rank's inputs: what it would on one machine, where there are `inputs` of them."""
    share: Share = module.share
    if share.axis == -2:
        return module.dropout(x)
    if not module.dropout.training or module.dropout._p_1 == 1:
        return x
    return x * share.of(module.dropout(mx.ones((*x.shape[:-1], inputs), x.dtype)), -1)


def shard(model: nn.Module, spec: AdapterSpec, group: mx.distributed.Group) -> Shards:
    """Share out a model that has its adapters on, best a lazily loaded one: never more than one tensor is whole.

    All ranks call it alike, with the same adapter. Raises `UserError` where the model, or what is trained of it, can't
    be shared out; the model is then good for nothing.
    """
    _require_possible(model, spec, group.size())
    trained = trainable(model)
    wholes = {name: v for name, v in tree_flatten(model.parameters()) if name not in trained}
    adapted = {name: module for name, module in model.named_modules() if "lora_a" in module}
    layers = {name: module[_inner(module)] for name, module in adapted.items()}
    shapes = {name: layer.weight.shape for name, layer in layers.items()}
    _replace(model, layers)
    cuts = _cut_up(model, group)
    model.freeze()
    modules = dict(model.named_modules())
    for name, module in adapted.items():
        module[_inner(module)] = modules[name]
        if id(modules[name].weight) in cuts:
            _share_out(name, module, cuts, group)
        elif modules[name].weight.shape != shapes[name]:
            raise _untrainable(name)
    _replace(model, adapted)
    whole = _let_go(model, wholes)
    return Shards(
        group, whole, frozenset(f"{name}.{which}" for name in _alike(model, adapted) for which in ("lora_a", "lora_b"))
    )


def _require_possible(model: nn.Module, spec: AdapterSpec, size: int) -> None:
    if spec.fine_tune_type != "lora":
        message = f"the weights of a model that is shared out stay as they are, and {spec.fine_tune_type} trains them"
        raise UserError(message, field=FIELD, hint="Use --fine-tune-type lora.")
    if spec.fuse_bits is not None:
        hint = "Leave one of the two out; `mlx-dpo fuse` finds the bits that keep the margin."
        raise UserError("an adapter can't be trained as it will be fused (--fuse-bits)", field=FIELD, hint=hint)
    family = type(model).__module__.rpartition(".")[2]
    if not hasattr(model, "shard"):
        raise UserError(f"mlx-lm can't share out a model of this type ({family})", field=FIELD, hint=INSTEAD)
    heads = _heads(model)
    if any(count % size for count in heads.values()):
        counts = " and ".join(f"{count} {kind}" for kind, count in heads.items())
        possible = [str(n) for n in range(2, min(heads.values()) + 1) if not math.gcd(*heads.values()) % n]
        hint = f"They can be by {' or '.join(possible)}." if possible else INSTEAD
        raise UserError(f"the model has {counts}, which can't be shared by {size} ranks", field=FIELD, hint=hint)


def _heads(model: nn.Module) -> dict[str, int]:
    """How many there are of each kind, as far as the model's settings say."""
    settings = vars(model.args) if hasattr(model, "args") else {}
    settings = {**settings, **(settings.get("text_config") or {})}
    kinds = {"attention heads": "num_attention_heads", "key-value heads": "num_key_value_heads"}
    return {kind: settings[name] for kind, name in kinds.items() if isinstance(settings.get(name), int)}


def _inner(module: nn.Module) -> str:
    """The name, in an adapter's layer, of what it adapts."""
    return "embedding" if "embedding" in module else "linear"


def _replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    if modules:
        model.update_modules(tree_unflatten(list(modules.items())))


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
        message = f"mlx-lm can't share out this model over {group.size()}: {lines[0]}"
        raise UserError(message, field=FIELD, hint="Try fewer machines, or train without --tensor-parallel.") from error
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
        if weight is not None and cut is not None:
            axis = (cut if isinstance(cut, int) else cut[0]) % weight.ndim
            size = parameters["scales"].shape[-1] if axis == weight.ndim - 1 and "scales" in parameters else None
            places = np.arange(size or weight.shape[axis])
            shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
            own = plain({"weight": mx.array(places.reshape(shape))}, where, group)["weight"]
            part = parts["weight"]
            cuts[id(part)] = part, axis - weight.ndim, _runs(np.array(own).reshape(-1))
        return parts

    distributed._shard = noting
    try:
        yield cuts
    finally:
        distributed._shard = plain


def _runs(places: np.ndarray) -> Runs:
    """Rising numbers as runs without gaps."""
    ends = np.flatnonzero(np.diff(places) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(places, ends)]


def _share_out(name: str, module: nn.Module, cuts: Cuts, group: mx.distributed.Group) -> None:
    """Have an adapter work on a rank's share of its layer. Raises `UserError` where it is of a kind that can't."""
    if type(module) not in KINDS:
        raise _untrainable(name)
    layer = module.linear
    _, axis, runs = cuts[id(layer.weight)]
    if axis == -1 and "scales" in layer:
        runs = [(start * layer.group_size, stop * layer.group_size) for start, stop in runs]
    module.__class__ = KINDS[type(module)]
    module.share = Share(group, axis, runs, joins=isinstance(layer, COLUMNS + ROWS))


def _untrainable(name: str) -> UserError:
    hint = "Name other layers with --lora-keys, or train without --tensor-parallel."
    return UserError(f"{name} can't be trained where it is shared out", field=FIELD, hint=hint)


def _alike(model: nn.Module, adapted: Mapping[str, nn.Module]) -> set[str]:
    """Names of adapted layers that all ranks compute alike, and whose outputs' gradient they have alike.

    In a block that sums over ranks itself, as mixtures of experts do, a layer that all have whole (a router) gets from
    each rank's experts that rank's share of the gradient.
    """
    blocks = [m for layer in model.layers for m in layer.modules() if getattr(m, "sharding_group", None) is not None]
    inside = {id(module) for block in blocks for module in block.modules()}
    return {name for name, module in adapted.items() if type(module) not in KINDS.values() and id(module) not in inside}


def _let_go(model: nn.Module, wholes: dict[str, mx.array]) -> dict[str, str]:
    """Make a rank's own tensors, one after the other; `wholes` is emptied. Returns what is to be said of the whole."""
    said = {}
    for name, own in tree_flatten(model.parameters()):
        if name in wholes:
            said[name] = described(wholes.pop(name))
        mx.eval(own)
    return said


def require_gradients(model: nn.Module, shards: Shards) -> None:
    """Try a backward pass: mlx-lm shares models out for generation, and some of them lose gradients on the way.

    What the first block is given, all ranks have alike, so they have to agree on the gradient with respect to it.
    Raises `UserError`, on all ranks, where they don't.
    """
    gradient = _gradient_before_blocks(model)
    highest = mx.distributed.all_max(gradient, group=shards.group)
    lowest = mx.distributed.all_min(gradient, group=shards.group)
    if not mx.all(highest - lowest <= UNLIKE * mx.abs(highest).max()).item():
        family = type(model).__module__.rpartition(".")[2]
        message = f"mlx-lm shares out models of this type ({family}) for generation only: gradients are lost on the way"
        raise UserError(message, field=FIELD, hint=INSTEAD)


def _gradient_before_blocks(model: nn.Module) -> mx.array:
    """Of some tokens' loss, with respect to the hidden rows that go into the first block, float32."""
    tokens = mx.array([[3, 5, 4, 6, 2, 7, 3, 1]])
    first, given = model.layers[0], list[mx.array]()
    kind: Any = type(first)
    plain = kind.__call__

    def loss(moved: mx.array) -> mx.array:
        def call(layer: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
            if layer is first:
                given.append(x)
                x = x + moved.astype(x.dtype)
            return plain(layer, x, *args, **kwargs)

        kind.__call__ = call
        try:
            logits = model(tokens[:, :-1]).astype(mx.float32)
        finally:
            kind.__call__ = plain
        return nn.losses.cross_entropy(logits, tokens[:, 1:]).sum()

    loss(mx.zeros(()))  # never evaluated
    gradient = mx.grad(loss)(mx.zeros(given[0].shape))
    mx.eval(gradient)
    return gradient
