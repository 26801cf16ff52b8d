"""One model in memory as several policies: its adapter tensors are replaced temporarily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


@contextmanager
def swap_adapter(model: nn.Module, tensors: Mapping[str, mx.array]) -> Iterator[None]:
    """Replace adapter tensors of a model inside a `with` block, e.g. to run the reference policy; restore them after.

    Args:
        model: the model.
        tensors: the values to use, by parameter name.
    """
    current = {k: v for k, v in tree_flatten(model.parameters()) if k in tensors}
    model.update(tree_unflatten(list(tensors.items())))
    try:
        yield
    finally:
        model.update(tree_unflatten(list(current.items())))
