"""Gradient checkpointing: a layer's inside is computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


@contextmanager
def checkpointed_layers(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Within, every block of `model.layers` is checkpointed; afterwards the classes are as they were.

    mlx-lm's own `grad_checkpoint` wraps the first block's class only, and for good; hybrids have several.
    """
    kinds = {type(layer) for layer in model.layers} if on else set()
    plain = {kind: kind.__call__ for kind in kinds}
    for kind, call in plain.items():
        kind.__call__ = _checkpointed(call)
    try:
        yield
    finally:
        for kind, call in plain.items():
            kind.__call__ = call


def _checkpointed(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Floating arrays are inputs, so that their gradient is kept; masks, ids and settings are closed over,
        # since mx.checkpoint would ask for a gradient to every array it is given.
        flat = tree_flatten((args, kwargs))
        differentiable = {k: v for k, v in flat if isinstance(v, mx.array) and mx.issubdtype(v.dtype, mx.floating)}
        rest = {k: v for k, v in flat if k not in differentiable}
        shape_of_output: list[Any] = []

        def inner(parameters: dict[str, Any], inputs: dict[str, mx.array]) -> list[mx.array]:
            layer.update(parameters)
            new_args, new_kwargs = _unflattened({**rest, **inputs}, args, kwargs)
            flat_out = tree_flatten(call(layer, *new_args, **new_kwargs))
            shape_of_output[:] = [(k, None if isinstance(v, mx.array) else (v,)) for k, v in flat_out]
            return [v for _, v in flat_out if isinstance(v, mx.array)]

        arrays = iter(mx.checkpoint(inner)(layer.trainable_parameters(), differentiable))
        out = [(k, next(arrays) if constant is None else constant[0]) for k, constant in shape_of_output]
        return out[0][1] if out[0][0] == "" else tree_unflatten(out)

    return wrapper


def _unflattened(
    leaves: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def put(tree: Any, prefix: str) -> Any:
        if isinstance(tree, (list, tuple)):
            return type(tree)(put(v, f"{prefix}.{i}") for i, v in enumerate(tree))
        if isinstance(tree, dict):
            return {k: put(v, f"{prefix}.{k}") for k, v in tree.items()}
        return leaves.get(prefix, tree)

    return put(args, "0"), put(kwargs, "1")
