"""Gradient checkpointing: activations inside a module are recomputed in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.forward.attention import blockwise_attention
from mlx_dpo.forward.prefix_cache import PrefixCache
from mlx_dpo.utils.random_state import random_state


def feed_forwards(model: nn.Module) -> dict[int, nn.Module]:
    """The feed-forward of each block that has one, by block index: the largest submodule of hidden states alone."""
    by_block = {}
    for i, block in enumerate(model.layers):
        modules = [m for m in block.children().values() if isinstance(m, nn.Module) and _takes_one_input(m)]
        sizes = [max((v.size for _, v in tree_flatten(m.parameters()) if v.ndim > 1), default=0) for m in modules]
        if any(sizes):
            by_block[i] = modules[sizes.index(max(sizes))]
    return by_block


def _takes_one_input(module: nn.Module) -> bool:
    return len(signature(type(module).__call__).parameters) == 2  # self and the hidden states


def checkpointed_modules(model: nn.Module, count: int) -> list[nn.Module]:
    """The modules to checkpoint: first feed-forwards, which keep the most activations for their work, then blocks."""
    blocks, small = list(model.layers), feed_forwards(model)
    num_blocks = max(0, count - len(small))
    rest = [module for i, module in small.items() if i >= num_blocks]
    return blocks[:num_blocks] + rest[: count if not num_blocks else None]


@contextmanager
def gradient_checkpointing(model: nn.Module, count: int) -> Iterator[None]:
    """Checkpoint some modules of a model inside a `with` block; afterwards its classes are as before.

    The first modules are chosen, since later ones have freed their activations by the time the backward pass reaches
    them. mlx-lm's own `grad_checkpoint` wraps the class of the first block only, and permanently; hybrids have several
    classes. Where all blocks are checkpointed, attention scores are too: they would be the largest activations.
    A layer that takes an object other than a cache is run as it is: arrays in it would be lost to the gradient.

    Args:
        model: the model.
        count: how many of `checkpointed_modules` to checkpoint.
    """
    chosen = checkpointed_modules(model, count)
    least = chosen == list(model.layers)
    plain: dict[Any, Any] = {kind: kind.__call__ for kind in map(type, chosen)}
    for kind, call in plain.items():
        kind.__call__ = _checkpointed(call, {id(module) for module in chosen}, least)
    try:
        yield
    finally:
        for kind, call in plain.items():
            kind.__call__ = call


def _checkpointed(call: Callable[..., Any], chosen: set[int], least: bool) -> Callable[..., Any]:
    def wrapper(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(layer) not in chosen:
            return call(layer, *args, **kwargs)
        # Floating arrays are inputs, so that their gradient is kept, those in caches among them; masks, ids and
        # settings are closed over, since mx.checkpoint would ask for a gradient to every array it is given.
        flat = tree_flatten((args, kwargs))
        if any(map(_may_hold_arrays, (v for _, v in flat))):
            return call(layer, *args, **kwargs)
        inputs = {k: v for k, v in flat if isinstance(v, mx.array) and mx.issubdtype(v.dtype, mx.floating)}
        rest = {k: v for k, v in flat if k not in inputs}
        caches = [v for v in rest.values() if isinstance(v, PrefixCache)]
        before, after, constants = [_gaps(cache) for cache in caches], list[list[bool]](), list[Any]()
        positions: list[int] = []

        seed = random_state() if _has_active_dropout(layer) else None

        def inner(arguments: dict[str, Any]) -> list[mx.array]:
            layer.update(arguments["parameters"])
            if seed is not None:  # the recomputation drops the same elements
                mx.random.seed(seed)
            for cache, arrays, shape in zip(caches, arguments["caches"], before, strict=True):
                cache.arrays = _with_gaps(arrays, shape)
            new_args, new_kwargs = _unflattened({**rest, **arguments["inputs"]}, args, kwargs)
            with blockwise_attention(checkpoint_scores=least):
                output = tree_flatten(call(layer, *new_args, **new_kwargs))
            constants[:] = [(k, None if isinstance(v, mx.array) else (v,)) for k, v in output]
            after[:] = [_gaps(cache) for cache in caches]
            arrays = [v for _, v in output if isinstance(v, mx.array)]
            arrays += [array for cache in caches for array in _present(cache)]
            # A layer may give the keys that it leaves in its cache to later layers too, and of an array that is
            # there twice mlx keeps the first place's gradient only.
            once = {id(array): array for array in arrays}
            positions[:] = [list(once).index(id(array)) for array in arrays]
            return list(once.values())

        present = [_present(cache) for cache in caches]
        once = mx.checkpoint(inner)({"parameters": layer.trainable_parameters(), "inputs": inputs, "caches": present})
        arrays = iter([once[position] for position in positions])
        out = [(k, next(arrays) if constant is None else constant[0]) for k, constant in constants]
        for cache, shape in zip(caches, after, strict=True):
            cache.arrays = _with_gaps(arrays, shape)
        return out[0][1] if out[0][0] == "" else tree_unflatten(out)

    return wrapper


def _may_hold_arrays(argument: Any) -> bool:
    """Whether gradients may flow through an argument that is no array: an object that a layer reads or writes."""
    return hasattr(argument, "__dict__") and not isinstance(argument, PrefixCache)


def _has_active_dropout(layer: nn.Module) -> bool:
    return any(isinstance(m, nn.Dropout) and m.training and m._p_1 < 1 for _, m in layer.named_modules())


def _present(cache: PrefixCache) -> list[mx.array]:
    return [array for array in cache.arrays if array is not None]


def _gaps(cache: PrefixCache) -> list[bool]:
    """Which entries of a cache hold an array."""
    return [array is not None for array in cache.arrays]


def _with_gaps(present: Iterable[mx.array], is_present: list[bool]) -> list[mx.array | None]:
    rest = iter(present)
    return [next(rest) if present_here else None for present_here in is_present]


def _unflattened(
    leaves: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _replaced_leaves(leaves, args, "0"), _replaced_leaves(leaves, kwargs, "1")


def _replaced_leaves(leaves: dict[str, Any], tree: Any, prefix: str) -> Any:
    """A tree with the leaves of these names; not a closure, whose cycle with itself would keep the arrays alive."""
    if isinstance(tree, (list, tuple)):
        return type(tree)(_replaced_leaves(leaves, v, f"{prefix}.{i}") for i, v in enumerate(tree))
    if isinstance(tree, dict):
        return {k: _replaced_leaves(leaves, v, f"{prefix}.{k}") for k, v in tree.items()}
    return leaves.get(prefix, tree)
