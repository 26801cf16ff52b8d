"""PEFT's LoRA, rsLoRA and DoRA adapters read into mlx-lm's form; see peft.py."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import read_safetensors
from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.peft.lora_factors import LoraFactors, reject_layers
from mlx_dpo.export.peft.peft_export import (
    PEFT_CONFIG_FILE,
    PEFT_PREFIX,
    PEFT_WEIGHTS_FILE,
    require_supported_model_type,
    transformers_layer_name,
)
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.utils.atomic_write import write_new
from mlx_dpo.utils.json_files import read_json

# Options of PEFT's LoraConfig that, once set, make more of an adapter than a low-rank product.
UNSUPPORTED_LORA_OPTIONS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights


def import_peft(folder: str | Path, save_path: str | Path, *, model: str | None = None) -> AdapterSpec:
    """Write a PEFT adapter (LoRA, rsLoRA, DoRA) as an adapter folder of mlx-lm's, and return what it says.

    Where ranks vary, factors are padded with zeros to the largest; a layer that PEFT left alone is all zeros. Both are
    exact, and stay zero in training, for their gradients are. Where scales vary, B takes up what the largest does not
    say. Factors become float32, as PEFT's do when it loads them.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        model: the model folder or Hub id it is for; by default what the adapter calls its base.

    Raises:
        UserError: something given is wrong, or mlx-lm can't hold it.
    """
    found = _read(Path(folder))
    name = model or found.base_model
    loaded = load_model(name, lazy=True)
    where = Where(str(folder))
    found = found.renamed(_names(loaded.model, require_supported_model_type(loaded)), where)
    spec, tensors = _for_mlx_lm(found, loaded.model, where)
    with write_new(save_path) as partial:
        partial.mkdir()
        RunFolder(partial).save_adapter(tensors, spec, name)
    return spec


@dataclass(frozen=True)
class _PeftAdapter:
    """A PEFT adapter as it was read: factors as mlx-lm has them, and each layer's own scale."""

    base_model: str
    dora: bool
    dropout: float
    layers: dict[str, LoraFactors]
    scales: dict[str, float]

    def renamed(self, names: Mapping[str, str], where: Where) -> _PeftAdapter:
        """The same by mlx-lm's names. Raises `UserError` naming layers that are in no such model."""
        hint = "Give the --model that the adapter was trained on; tied embeddings have no lm_head."
        unknown = [name for name in self.layers if name not in names]
        reject_layers(unknown, "the model has no such linear layers", where, hint)
        return replace(
            self,
            layers={names[name]: factors for name, factors in self.layers.items()},
            scales={names[name]: scale for name, scale in self.scales.items()},
        )


def _names(model: nn.Module, kind: str) -> dict[str, str]:
    """mlx-lm's name of every linear layer, by transformers' and by its own, which older versions wrote for some."""
    own = list(_places(model))
    return {name: name for name in own} | {transformers_layer_name(kind, name): name for name in own}


def _read(folder: Path) -> _PeftAdapter:
    if not (folder / PEFT_CONFIG_FILE).is_file() or not (folder / PEFT_WEIGHTS_FILE).is_file():
        hint = f"A PEFT adapter is a folder with {PEFT_CONFIG_FILE} and {PEFT_WEIGHTS_FILE}."
        if (folder / "adapter_model.bin").is_file():
            hint = f"This one is pickled: load it in PEFT and `save_pretrained` it, which writes {PEFT_WEIGHTS_FILE}."
        raise UserError("not a PEFT adapter", where=Where(str(folder)), hint=hint)
    config, where = read_json(folder / PEFT_CONFIG_FILE), Where(str(folder / PEFT_CONFIG_FILE))
    _require_lora(config, where)
    layers = _from_peft(read_safetensors(folder / PEFT_WEIGHTS_FILE), Where(str(folder / PEFT_WEIGHTS_FILE)))
    try:
        return _PeftAdapter(
            base_model=config.get("base_model_name_or_path") or "",
            dora=bool(config.get("use_dora")),
            dropout=float(config.get("lora_dropout") or 0),
            layers=layers,
            scales={name: _scale(config, name, factors.lora_a.shape[1]) for name, factors in layers.items()},
        )
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise UserError(f"not a LoRA config of PEFT's: {error!r}", where=where) from None


def _require_lora(config: Mapping[str, Any], where: Where) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"only LoRA (rsLoRA, DoRA) can be imported, not {kind}", where=where, field="peft_type")
    for option in UNSUPPORTED_LORA_OPTIONS:
        if config.get(option):
            raise UserError("mlx-lm's adapters have no such thing", where=where, field=option)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING_INITS):
        hint = "PEFT can save it as plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        raise UserError(
            f"{start} changed the base model's weights, so the adapter does not fit the base model as it is",
            where=where,
            field="init_lora_weights",
            hint=hint,
        )


def _from_peft(tensors: Tensors, where: Where) -> dict[str, LoraFactors]:
    parts: dict[str, dict[str, mx.array]] = {}
    others = []
    for key, tensor in tensors.items():
        name = re.fullmatch(
            r"base_model\.model\.(.+)\.(?:lora_([AB])\.weight|lora_(magnitude_vector)(?:\.weight)?)", key
        )
        if name and tensor.ndim == (1 if name[3] else 2):
            parts.setdefault(name[1], {})[name[2] or "m"] = tensor.astype(mx.float32)
        else:
            others.append(key.removeprefix(PEFT_PREFIX))
    why = "mlx-lm's adapters hold linear layers only, and this one holds more (modules_to_save, embeddings, biases)"
    reject_layers(others, why, where, "Train it without these, or fuse it with PEFT's merge_and_unload.")
    reject_layers([n for n, p in parts.items() if not {"A", "B"} <= set(p)], "the file lacks a factor of", where)
    if not parts:
        raise UserError("there is no LoRA layer in it", where=where)
    return {name: LoraFactors(p["A"].T, p["B"].T, p.get("m")) for name, p in parts.items()}


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))  # as PEFT does
    alpha = float(next(own, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _for_mlx_lm(found: _PeftAdapter, model: nn.Module, where: Where) -> tuple[AdapterSpec, Tensors]:
    """The adapter's spec, and the tensors of every layer that mlx-lm will attach for it."""
    places = _places(model)
    blocks = [block for name in found.layers if (block := places[name][0]) is not None]
    scale = max(found.scales.values())
    spec = AdapterSpec(
        fine_tune_type="dora" if found.dora else "lora",
        num_layers=len(model.layers) - min(blocks, default=len(model.layers) - 1),
        rank=max(factors.lora_a.shape[1] for factors in found.layers.values()),
        scale=scale,
        dropout=found.dropout,
        keys=tuple(sorted({places[name][1] for name in found.layers})),
    )
    spec = attach_adapter(model, spec)
    tensors = {}
    for name, fresh in trainable_tensors(model).items():
        tensors[name] = fresh if name.endswith(".m") else mx.zeros(fresh.shape)
    for name, factors in found.layers.items():
        b = factors.lora_b if found.scales[name] == scale else factors.lora_b * (found.scales[name] / scale)
        own = {"lora_a": factors.lora_a, "lora_b": b} | ({} if factors.magnitude is None else {"m": factors.magnitude})
        for kind, tensor in own.items():
            tensors[f"{name}.{kind}"] = _padded(tensor, tensors[f"{name}.{kind}"].shape, f"{name}.{kind}", where)
    return spec, tensors


def _places(model: nn.Module) -> dict[str, tuple[int | None, str]]:
    """The linear layers of a model: the number of each one's block, and mlx-lm's key for it."""
    inside = {
        id(module): (number, key)
        for number, block in enumerate(model.layers)
        for key, module in block.named_modules()
        if isinstance(module, (nn.Linear, nn.QuantizedLinear))
    }
    return {
        name: inside.get(id(module), (None, name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.QuantizedLinear))
    }


def _padded(tensor: mx.array, shape: tuple[int, ...], name: str, where: Where) -> mx.array:
    grown = {"lora_a": (1,), "lora_b": (0,), "m": ()}[name.rpartition(".")[2]]
    if any(
        have != want and axis not in grown for axis, (have, want) in enumerate(zip(tensor.shape, shape, strict=True))
    ):
        hint = "Give the --model that the adapter was trained on."
        raise UserError(f"{name} is {tensor.shape}, and {shape} in this model", where=where, hint=hint)
    return mx.pad(tensor, [(0, want - have) for have, want in zip(tensor.shape, shape, strict=True)])
