"""A fused model written layer by layer, so that no more than a shard of it is in memory at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dpo.adapters.merging import FLOAT_PRECISION, adapted_layers, layer_precision, merge_layer
from mlx_dpo.export.fuse.bit_search import PrecisionPlan
from mlx_dpo.forward.model_loading import LoadedModel

SHARD_BYTES = 256 << 20  # bytes


def iter_fused_tensors(model: nn.Module, plan: PrecisionPlan) -> Iterator[tuple[str, mx.array]]:
    """(name, tensor) of the fused model. All but the layers of the plan keep the base's own, bit for bit.

    The model is taken apart on the way, so that what was given can be let go of: keep no other hold of it.
    """
    layers = {name: module for name, module in model.named_modules() if name in plan}
    rest = {k: v for k, v in tree_flatten(model.parameters()) if not any(k.startswith(f"{name}.") for name in layers)}
    model.clear()
    del model
    for name in list(rest):
        yield name, rest.pop(name)
    for name in list(layers):
        folded = merge_layer(layers.pop(name), plan[name])
        yield from ((f"{name}.{k}", v) for k, v in tree_flatten(folded.parameters()))


def write_shards(folder: Path, tensors: Iterator[tuple[str, mx.array]]) -> int:
    """Write shards and their index as mlx-lm reads them. Returns the bytes of all tensors."""
    shards: list[list[str]] = []
    held: dict[str, mx.array] = {}
    total = 0

    def close() -> None:
        try:
            mx.save_safetensors(str(folder / f"{len(shards)}.safetensors"), held, metadata={"format": "mlx"})
        except RuntimeError as error:  # a full disk, for one
            raise OSError(str(error)) from error
        shards.append(list(held))
        held.clear()
        mx.clear_cache()

    for name, tensor in tensors:
        if held and sum(v.nbytes for v in held.values()) + tensor.nbytes > SHARD_BYTES:
            close()
        held[name] = tensor
        total += tensor.nbytes
        del tensor
    close()
    where: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        (folder / f"{i}.safetensors").rename(folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=4), encoding="utf-8")
    return total


def unquantized_plan(model: nn.Module) -> PrecisionPlan:
    """A plan that leaves nothing quantized."""
    adapted = list(adapted_layers(model))
    inside = tuple(f"{name}." for name in adapted)
    quantized = [name for name, module in model.named_modules() if "scales" in module and not name.startswith(inside)]
    return dict.fromkeys([*adapted, *quantized], FLOAT_PRECISION)


def fused_config(loaded: LoadedModel, plan: PrecisionPlan) -> dict[str, Any]:
    """config.json of the fused model: names every layer that has another precision than in the base."""
    config, modules = deepcopy(loaded.config), dict(loaded.model.named_modules())
    changed = {name: precision for name, precision in plan.items() if precision != layer_precision(modules[name])}
    if "quantization" in config:
        config["quantization"] |= {name: precision.to_json() for name, precision in changed.items()}
    if plan == unquantized_plan(loaded.model):
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
    return config


def write_fused_model(folder: Path, loaded: LoadedModel, plan: PrecisionPlan, tokenizer: Any) -> int:
    """Write a model folder; the model with the adapter on it is taken apart. Returns the bytes of its tensors."""
    from mlx_lm.utils import save_config

    config = fused_config(loaded, plan)
    vision = "vision_tower" in loaded.model.get("model", {})  # as in mlx-lm's `save`
    folder.mkdir(parents=True)
    size = write_shards(folder, iter_fused_tensors(loaded.model, plan))
    save_config(config, folder / "config.json", keep_vision_config=vision)
    tokenizer.save_pretrained(folder)
    for file in [*loaded.path.glob("*.py"), *loaded.path.glob("generation_config.json")]:
        shutil.copy(file, folder)
    return size
