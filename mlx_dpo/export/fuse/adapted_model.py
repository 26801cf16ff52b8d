"""A model with an adapter on it, opened as often as it is needed and never twice at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.merging import fold
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.export.fuse.bit_search import Plan
from mlx_dpo.forward.model_loading import LoadedModel, load_model


@dataclass(frozen=True)
class AdaptedModel:
    """A model folder or Hub id, and an adapter folder for it."""

    model: str
    adapter: Path

    def open(self) -> tuple[LoadedModel, Tensors]:
        """The model with the adapter on it, tensors unread, and the adapter's tensors that undo it."""
        loaded = load_model(self.model, lazy=True)
        _, base = load_adapter(loaded.model, self.adapter, lazy=True)
        return loaded, base

    def fused(self, plan: Plan) -> nn.Module:
        """The model with the layers of a plan folded, one after the other."""
        model = self.open()[0].model
        layers = {name: module for name, module in model.named_modules() if name in plan}
        for name in list(layers):
            put(model, {name: fold(layers.pop(name), plan[name])})
        mx.eval(model.parameters())
        return model


def put(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Replace layers of a model."""
    model.update_modules(tree_unflatten(list(layers.items())))


@contextmanager
def folded(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Within, the layers of a plan are folded and the others are not."""
    layers = {name: module for name, module in model.named_modules() if name in plan}
    put(model, {name: fold(module, plan[name]) for name, module in layers.items()})
    try:
        yield
    finally:
        put(model, layers)
