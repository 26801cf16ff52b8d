"""One model in memory as several policies: its adapter tensors are exchanged for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


@contextmanager
def swap_adapter(model: nn.Module, tensors: Mapping[str, mx.array]) -> Iterator[None]:
    """Within, these tensors of the model are other ones; so one model in memory is policy and reference both."""
    current = {k: v for k, v in tree_flatten(model.parameters()) if k in tensors}
    model.update(tree_unflatten(list(tensors.items())))
    try:
        yield
    finally:
        model.update(tree_unflatten(list(current.items())))
