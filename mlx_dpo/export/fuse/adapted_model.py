"""A model with an adapter, loaded again for each use so that only one copy is in memory at a time."""

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
    """Where a model and its adapter are.

    Attributes:
        model: folder or Hub id.
        adapter_path: the adapter's folder.
    """

    model: str
    adapter_path: Path

    def load(self) -> tuple[LoadedModel, Tensors]:
        """Load the model with the adapter attached, tensors unread.

        Returns:
            The model, and the adapter tensors that turn it into the base model.
        """
        loaded = load_model(self.model, lazy=True)
        _, neutral_tensors = load_adapter(loaded.model, self.adapter_path, lazy=True)
        return loaded, neutral_tensors

    def load_fused(self, plan: PrecisionPlan) -> nn.Module:
        """Load the model and merge the layers of a plan, one at a time."""
        model = self.load()[0].model
        layers = {name: module for name, module in model.named_modules() if name in plan}
        for name in list(layers):
            replace_layers(model, {name: merge_layer(layers.pop(name), plan[name])})
        mx.eval(model.parameters())
        return model


def replace_layers(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Replace layers of a model, by name."""
    model.update_modules(tree_unflatten(list(layers.items())))


@contextmanager
def temporarily_merged(model: nn.Module, plan: PrecisionPlan) -> Iterator[None]:
    """Merge the layers of a plan inside a `with` block; all other layers stay adapted."""
    layers = {name: module for name, module in model.named_modules() if name in plan}
    replace_layers(model, {name: merge_layer(module, plan[name]) for name, module in layers.items()})
    try:
        yield
    finally:
        replace_layers(model, layers)
