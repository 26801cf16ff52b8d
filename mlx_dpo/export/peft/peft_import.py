"""Read PEFT's LoRA, rsLoRA and DoRA adapters into mlx-lm's format; see `peft_format`."""

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
from mlx_dpo.export.lora_factors import LoraFactors, reject_layers
from mlx_dpo.export.peft.peft_format import (
    PEFT_CONFIG_FILE,
    PEFT_PREFIX,
    PEFT_WEIGHTS_FILE,
    require_supported_model_type,
    transformers_layer_name,
)
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.lineage.lineage_file import Lineage, read_lineage, write_lineage
from mlx_dpo.lineage.lineage_steps import converted_lineage
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.utils.atomic_write import write_new
from mlx_dpo.utils.json_files import read_json

# Options of PEFT's LoraConfig that add something to an adapter that is not a low-rank product.
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
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # how values of init_lora_weights start


@dataclass(frozen=True)
class _PeftAdapter:
    """A PEFT adapter with factors in mlx-lm's layout.

    Attributes:
        base_model: the model it was trained on; empty if unknown.
        is_dora: whether it is DoRA.
        dropout: dropout on the input of A, in training.
        layers: factors by layer name.
        scales: scale by layer name.
    """

    base_model: str
    is_dora: bool
    dropout: float
    layers: dict[str, LoraFactors]
    scales: dict[str, float]

    def with_mlx_names(self, model: nn.Module, model_type: str, where: Where) -> _PeftAdapter:
        """Rename the layers to mlx-lm's names.

        Args:
            model: the model.
            model_type: its type in config.json.
            where: the adapter's folder, for messages.

        Raises:
            UserError: the model lacks some of the layers.
        """
        mlx_names = list(_linear_layers(model))
        names = {name: name for name in mlx_names}  # older versions of PEFT wrote these for some model types
        names |= {transformers_layer_name(model_type, name): name for name in mlx_names}
        hint = "Give the --model that the adapter was trained on; tied embeddings have no lm_head."
        unknown = [name for name in self.layers if name not in names]
        reject_layers(unknown, "the model has no such linear layers", where, hint)
        return replace(
            self,
            layers={names[name]: factors for name, factors in self.layers.items()},
            scales={names[name]: scale for name, scale in self.scales.items()},
        )


def import_peft(folder: str | Path, save_path: str | Path, *, model: str | None = None) -> AdapterSpec:
    """Write a PEFT adapter (LoRA, rsLoRA, DoRA) as an mlx-lm adapter folder.

    If ranks vary, factors are padded with zeros to the largest rank; a layer that PEFT did not adapt gets zeros.
    Both are exact, and padding stays zero in training because its gradients are zero. If scales vary, B is
    multiplied by the layer's scale over the largest scale. Factors become float32, as in PEFT.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        save_path: the new folder.
        model: folder or Hub id of the adapter's model; by default the base that the adapter names.

    Returns:
        The spec of the new adapter.

    Raises:
        UserError: an argument is wrong, or mlx-lm can't hold the adapter.
    """
    adapter = _read_adapter(Path(folder))
    base_model = model or adapter.base_model
    loaded = load_model(base_model, lazy=True)
    where = Where(str(folder))
    adapter = adapter.with_mlx_names(loaded.model, require_supported_model_type(loaded), where)
    spec, tensors = _to_mlx_lm(adapter, loaded.model, where)
    trained_on = identify_model(adapter.base_model) if adapter.base_model else None
    recorded = read_lineage(folder) or Lineage("peft", trained_on)
    lineage = converted_lineage(recorded, identify_model(base_model, loaded.path), "adapter")
    with write_new(save_path) as partial:
        partial.mkdir()
        RunFolder(partial).save_adapter(tensors, spec, base_model)
        write_lineage(partial, lineage)
    return spec


def _read_adapter(folder: Path) -> _PeftAdapter:
    if not (folder / PEFT_CONFIG_FILE).is_file() or not (folder / PEFT_WEIGHTS_FILE).is_file():
        hint = f"A PEFT adapter is a folder with {PEFT_CONFIG_FILE} and {PEFT_WEIGHTS_FILE}."
        if (folder / "adapter_model.bin").is_file():
            hint = f"This one is pickled: load it in PEFT and `save_pretrained` it, which writes {PEFT_WEIGHTS_FILE}."
        raise UserError("not a PEFT adapter", where=Where(str(folder)), hint=hint)
    config, where = read_json(folder / PEFT_CONFIG_FILE), Where(str(folder / PEFT_CONFIG_FILE))
    _require_plain_lora(config, where)
    weights_file = folder / PEFT_WEIGHTS_FILE
    layers = _read_factors(read_safetensors(weights_file), Where(str(weights_file)))
    try:
        return _PeftAdapter(
            base_model=config.get("base_model_name_or_path") or "",
            is_dora=bool(config.get("use_dora")),
            dropout=float(config.get("lora_dropout") or 0),
            layers=layers,
            scales={name: _layer_scale(config, name, factors.rank) for name, factors in layers.items()},
        )
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise UserError(f"not a valid LoRA config of PEFT: {error!r}", where=where) from None


def _require_plain_lora(config: Mapping[str, Any], where: Where) -> None:
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise UserError(f"only LoRA (rsLoRA, DoRA) can be imported, not {peft_type}", where=where, field="peft_type")
    for option in UNSUPPORTED_LORA_OPTIONS:
        if config.get(option):
            raise UserError("mlx-lm's adapters don't support this option", where=where, field=option)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        hint = "PEFT can save it as plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        raise UserError(
            f"{init} changed the base model's weights, so the adapter does not fit the original base model",
            where=where,
            field="init_lora_weights",
            hint=hint,
        )


def _read_factors(tensors: Tensors, where: Where) -> dict[str, LoraFactors]:
    parts: dict[str, dict[str, mx.array]] = {}
    unsupported = []
    for key, tensor in tensors.items():
        match = re.fullmatch(
            r"base_model\.model\.(.+)\.(?:lora_([AB])\.weight|lora_(magnitude_vector)(?:\.weight)?)", key
        )
        if match and tensor.ndim == (1 if match[3] else 2):
            parts.setdefault(match[1], {})[match[2] or "m"] = tensor.astype(mx.float32)
        else:
            unsupported.append(key.removeprefix(PEFT_PREFIX))
    reason = "mlx-lm's adapters hold linear layers only, and this one holds more (modules_to_save, embeddings, biases)"
    reject_layers(unsupported, reason, where, "Train it without these, or merge it with PEFT's merge_and_unload.")
    reject_layers([n for n, p in parts.items() if not {"A", "B"} <= set(p)], "the file lacks a factor of", where)
    if not parts:
        raise UserError("the file has no LoRA layers", where=where)
    return {name: LoraFactors(p["A"].T, p["B"].T, p.get("m")) for name, p in parts.items()}


def _layer_scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alphas = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))  # as in PEFT
    alpha = float(next(alphas, config["lora_alpha"]))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _to_mlx_lm(adapter: _PeftAdapter, model: nn.Module, where: Where) -> tuple[AdapterSpec, Tensors]:
    """The adapter's spec, and tensors for every layer that mlx-lm attaches for it."""
    linear_layers = _linear_layers(model)
    blocks = [block for name in adapter.layers if (block := linear_layers[name][0]) is not None]
    max_scale = max(adapter.scales.values())
    spec = AdapterSpec(
        fine_tune_type="dora" if adapter.is_dora else "lora",
        num_layers=len(model.layers) - min(blocks, default=len(model.layers) - 1),
        rank=max(factors.rank for factors in adapter.layers.values()),
        scale=max_scale,
        dropout=adapter.dropout,
        keys=tuple(sorted({linear_layers[name][1] for name in adapter.layers})),
    )
    spec = attach_adapter(model, spec)
    tensors = {}
    for name, tensor in trainable_tensors(model).items():
        tensors[name] = tensor if name.endswith(".m") else mx.zeros(tensor.shape)
    for layer, factors in adapter.layers.items():
        scale = adapter.scales[layer]
        parts = {"lora_a": factors.lora_a, "lora_b": factors.lora_b, "m": factors.magnitude}
        if scale != max_scale:
            parts["lora_b"] = factors.lora_b * (scale / max_scale)
        for part, value in parts.items():
            if value is not None:
                name = f"{layer}.{part}"
                tensors[name] = _pad_to(value, tensors[name].shape, name, where)
    return spec, tensors


def _linear_layers(model: nn.Module) -> dict[str, tuple[int | None, str]]:
    """The linear layers by name: index of the block (None outside blocks) and mlx-lm's key for the layer."""
    kinds = (nn.Linear, nn.QuantizedLinear)
    in_blocks = {
        id(module): (index, key)
        for index, block in enumerate(model.layers)
        for key, module in block.named_modules()
        if isinstance(module, kinds)
    }
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    return {name: in_blocks.get(id(module), (None, name)) for name, module in layers.items()}


def _pad_to(tensor: mx.array, shape: tuple[int, ...], name: str, where: Where) -> mx.array:
    """Pad a factor with zeros to the adapter's rank; its other dimensions must be the model's."""
    rank_axis = {"lora_a": 1, "lora_b": 0, "m": None}[name.rpartition(".")[2]]
    missing = [wanted - actual for actual, wanted in zip(tensor.shape, shape, strict=True)]
    if any(missing[axis] for axis in range(tensor.ndim) if axis != rank_axis):
        hint = "Give the --model that the adapter was trained on."
        raise UserError(f"{name} has shape {tensor.shape}, but {shape} in this model", where=where, hint=hint)
    return mx.pad(tensor, [(0, count) for count in missing])
