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
from mlx_dpo.adapters.merging import merge_layer
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.export.fuse.bit_search import PrecisionPlan
from mlx_dpo.forward.model_loading import LoadedModel, load_model


@dataclass(frozen=True)
class AdaptedModel:
    """A model folder or Hub id, and an adapter folder for it."""

    model: str
    adapter_path: Path

    def load(self) -> tuple[LoadedModel, Tensors]:
        """The model with the adapter on it, tensors unread, and the adapter's tensors that undo it."""
        loaded = load_model(self.model, lazy=True)
        _, base = load_adapter(loaded.model, self.adapter_path, lazy=True)
        return loaded, base

    def load_fused(self, plan: PrecisionPlan) -> nn.Module:
        """The model with the layers of a plan folded, one after the other."""
        model = self.load()[0].model
        layers = {name: module for name, module in model.named_modules() if name in plan}
        for name in list(layers):
            replace_layers(model, {name: merge_layer(layers.pop(name), plan[name])})
        mx.eval(model.parameters())
        return model


def replace_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Replace layers of a model."""
    model.update_modules(tree_unflatten(list(layers.items())))


@contextmanager
def temporarily_merged(model: nn.Module, plan: PrecisionPlan) -> Iterator[None]:
    """Within, the layers of a plan are folded and the others are not."""
    layers = {name: module for name, module in model.named_modules() if name in plan}
    replace_layers(model, {name: merge_layer(module, plan[name]) for name, module in layers.items()})
    try:
        yield
    finally:
        replace_layers(model, layers)
