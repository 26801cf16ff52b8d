"""Write a fused model layer by layer, with at most one shard in memory at a time."""

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

SHARD_BYTES = 256 << 20


def write_fused_model(folder: Path, loaded: LoadedModel, plan: PrecisionPlan, tokenizer: Any) -> int:
    """Write a model folder.

    Args:
        folder: the new folder.
        loaded: the model with the adapter; its layers are removed while they are written.
        plan: precision of each layer to merge.
        tokenizer: as mlx_lm.load returns it.

    Returns:
        The bytes of all tensors.

    Raises:
        OSError: the folder can't be written.
    """
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


def iter_fused_tensors(model: nn.Module, plan: PrecisionPlan) -> Iterator[tuple[str, mx.array]]:
    """Yield the name and value of each tensor of the fused model; tensors outside the plan are the base's.

    The model is emptied, so that a tensor is freed once it is used: hold no other reference to its layers.
    """
    layers = {name: module for name, module in model.named_modules() if name in plan}
    prefixes = tuple(f"{name}." for name in layers)
    unchanged = {name: tensor for name, tensor in tree_flatten(model.parameters()) if not name.startswith(prefixes)}
    model.clear()
    del model
    for name in list(unchanged):
        yield name, unchanged.pop(name)
    for name in list(layers):
        merged = merge_layer(layers.pop(name), plan[name])
        yield from ((f"{name}.{part}", tensor) for part, tensor in tree_flatten(merged.parameters()))


def write_shards(folder: Path, tensors: Iterator[tuple[str, mx.array]]) -> int:
    """Write safetensors shards of at most `SHARD_BYTES` and their index, as mlx-lm reads them.

    Returns:
        The bytes of all tensors.

    Raises:
        OSError: a file can't be written.
    """
    shards: list[list[str]] = []
    shard: dict[str, mx.array] = {}
    total_size = 0

    def flush() -> None:
        try:
            mx.save_safetensors(str(folder / f"{len(shards)}.safetensors"), shard, metadata={"format": "mlx"})
        except RuntimeError as error:  # such as a full disk
            raise OSError(str(error)) from error
        shards.append(list(shard))
        shard.clear()
        mx.clear_cache()

    for name, tensor in tensors:
        if shard and sum(v.nbytes for v in shard.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        shard[name] = tensor
        total_size += tensor.nbytes
        del tensor
    flush()
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        (folder / f"{i}.safetensors").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=4), encoding="utf-8")
    return total_size


def unquantized_plan(model: nn.Module) -> PrecisionPlan:
    """A plan with every adapted and every quantized layer in the base's float type."""
    adapted = list(adapted_layers(model))
    prefixes = tuple(f"{name}." for name in adapted)
    quantized = [name for name, module in model.named_modules() if "scales" in module and not name.startswith(prefixes)]
    return dict.fromkeys([*adapted, *quantized], FLOAT_PRECISION)


def fused_config(loaded: LoadedModel, plan: PrecisionPlan) -> dict[str, Any]:
    """The fused model's config.json, with the precision of every layer that differs from the base."""
    config, modules = deepcopy(loaded.config), dict(loaded.model.named_modules())
    changed = {name: precision for name, precision in plan.items() if precision != layer_precision(modules[name])}
    if "quantization" in config:
        config["quantization"] |= {name: precision.to_json() for name, precision in changed.items()}
    if plan == unquantized_plan(loaded.model):
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
    return config
