"""What an mlx-lm adapter is, layer by layer: the form that PEFT's and llama.cpp's adapters are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from mlx_dpo.adapters.adapter_folder import read_adapter, set_tensors
from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.errors import UserError, Where
from mlx_dpo.forward.model_loading import LoadedModel, load_model

MAX_LISTED_LAYERS = 3


@dataclass(frozen=True)
class LoraFactors:
    """What is added to one linear layer: W + scale (A B)^T, its rows then brought to DoRA's magnitude if there is one.

    Attributes:
        a: A [inputs, rank].
        b: B [rank, outputs].
        m: magnitude [outputs], or None for plain LoRA.
    """

    lora_a: mx.array
    lora_b: mx.array
    magnitude: mx.array | None = None


@dataclass(frozen=True)
class AdapterFactors:
    """An adapter with its model, whose weights are read only where they are used.

    Attributes:
        spec: rank, scale and kind, the same for all layers.
        layers: the factors of every adapted linear layer, by its name in the model.
    """

    loaded_model: LoadedModel
    spec: AdapterSpec
    layers: dict[str, LoraFactors]


def load_adapter_factors(model: str, adapter_path: str | Path) -> AdapterFactors:
    """The adapter folder of a run, or of mlx-lm.

    Raises:
        UserError: it is not one of this model, or adapts more than linear layers.
    """
    spec, tensors = read_adapter(adapter_path)
    where = Where(str(adapter_path))
    if spec.fine_tune_type == "full":
        hint = "`mlx-dpo fuse` makes a model folder of it."
        raise UserError("this run trained the model's own weights: it has no adapter", where=where, hint=hint)
    loaded = load_model(model, lazy=True)
    spec = attach_adapter(loaded.model, spec)
    set_tensors(loaded.model, tensors, where)
    adapted = {name: module for name, module in loaded.model.named_modules() if "lora_a" in module}
    reject_layers(
        [name for name, module in adapted.items() if not isinstance(module, (LoRALinear, DoRALinear))],
        "what is adapted is not a linear layer (experts, embeddings), which only mlx-lm's adapters can hold",
        where,
    )
    return AdapterFactors(loaded, spec, {name: _factors(module) for name, module in adapted.items()})


def _factors(module: nn.Module) -> LoraFactors:
    return LoraFactors(module.lora_a, module.lora_b, module.get("m"))


def reject_layers(names: list[str], reason: str, where: Where, hint: str | None = None) -> None:
    """Raises `UserError` naming the first of them, if there are any."""
    if names:
        more = f" and {len(names) - MAX_LISTED_LAYERS} more" if len(names) > MAX_LISTED_LAYERS else ""
        raise UserError(f"{reason}: {', '.join(names[:MAX_LISTED_LAYERS])}{more}", where=where, hint=hint)
