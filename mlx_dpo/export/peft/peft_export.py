"""PEFT's LoRA adapters, written and read: adapter_config.json and adapter_model.safetensors.

mlx-lm computes W x + scale (x A) B with A [inputs, rank] and B [rank, outputs], one rank and one scale for all layers.
PEFT stores both transposed, and its scale is lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023,
arXiv 2312.03732); rank_pattern and alpha_pattern make them vary by layer. DoRA (Liu et al. 2024, arXiv 2402.09353) is
the same in both: rows of W + scale (A B)^T brought to a learned magnitude.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from yaml import YAMLError

from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.peft.lora_factors import LoraFactors, load_adapter_factors, reject_layers
from mlx_dpo.forward.model_loading import LoadedModel
from mlx_dpo.utils.atomic_write import write_new

PEFT_CONFIG_FILE, PEFT_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."

# Model types whose linear layers have the same names in mlx-lm and in transformers; tests/export/test_peft_live.py
# holds the logits of each against PEFT's.
# fmt: off
SAME_LAYER_NAMES = frozenset({
    "cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "helium", "llama", "mistral",
    "mixtral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
})
# fmt: on
# How the names of the text model's layers start in transformers, for types where mlx-lm's start with INNER.
TEXT_LAYERS_PREFIX = "language_model.model."
TRANSFORMERS_PREFIXES = {"gemma3": "model.language_model.", "qwen3_5": "model."}
ROUTERS = (".mlp.gate", ".block_sparse_moe.gate")  # no linear layers in transformers


def transformers_layer_name(model_type: str, name: str) -> str:
    """What a linear layer of a model of this type is called in transformers."""
    if model_type not in TRANSFORMERS_PREFIXES:
        return name
    if name.startswith(TEXT_LAYERS_PREFIX):
        return TRANSFORMERS_PREFIXES[model_type] + name.removeprefix(TEXT_LAYERS_PREFIX)
    return name.removeprefix("language_model.")


def require_supported_model_type(loaded: LoadedModel) -> str:
    """The model's type. Raises `UserError` where its layers' names in transformers are not known."""
    kind = loaded.config["model_type"]
    if kind not in SAME_LAYER_NAMES and kind not in TRANSFORMERS_PREFIXES:
        raise UserError(
            f"which layers of a model of type {kind!r} are which in transformers is not known here",
            where=Where(str(loaded.path)),
            hint=f"Known are {', '.join(sorted(SAME_LAYER_NAMES | TRANSFORMERS_PREFIXES.keys()))}.",
        )
    return kind


def export_peft(model: str, adapter_path: str | Path, save_path: str | Path, *, base_model: str | None = None) -> Path:
    """Write an adapter folder of mlx-lm's as one that PEFT loads.

    Columns that are zero in both factors, as `import_peft` pads with, are left out again.

    Args:
        model: model folder or Hub id the adapter was trained on.
        base_model: what transformers is to load the adapter onto; by default what the model's own card calls its base
            (the unquantized original, for a model of mlx-community), or else `model`.

    Raises:
        UserError: something given is wrong, or PEFT can't hold it.
    """
    adapter = load_adapter_factors(model, adapter_path)
    where = Where(str(adapter_path))
    kind = require_supported_model_type(adapter.loaded_model)
    reject_layers([n for n in adapter.layers if n.endswith(ROUTERS)], "PEFT can't adapt the router of experts", where)
    whole = {transformers_layer_name(kind, name): factors for name, factors in adapter.layers.items()}
    trimmed = {name: _trimmed(factors) for name, factors in whole.items()}
    layers = {name: factors for name, factors in trimmed.items() if factors.lora_a.shape[1]}
    if not layers:
        raise UserError("this adapter is zero in every layer", where=where)
    config = _config(adapter.spec, layers, list(whole), base_model or _base_of(adapter.loaded_model.path, model))
    with write_new(save_path) as folder:
        folder.mkdir()
        (folder / PEFT_CONFIG_FILE).write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        mx.save_safetensors(str(folder / PEFT_WEIGHTS_FILE), _to_peft(layers), metadata={"format": "pt"})
    return Path(save_path)


def _trimmed(factors: LoraFactors) -> LoraFactors:
    used = mx.any(factors.lora_a != 0, axis=0) | mx.any(factors.lora_b != 0, axis=1)
    rank = int(mx.max(mx.where(used, mx.arange(1, used.size + 1), 0)))
    if factors.magnitude is not None:
        rank = max(rank, 1)  # PEFT has no layer of rank 0, and DoRA's magnitude counts without one
    return LoraFactors(factors.lora_a[:, :rank], factors.lora_b[:rank], factors.magnitude)


def _to_peft(layers: Mapping[str, LoraFactors]) -> Tensors:
    tensors = {}
    for name, factors in layers.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = mx.contiguous(factors.lora_a.T)
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = mx.contiguous(factors.lora_b.T)
        if factors.magnitude is not None:
            tensors[f"{PEFT_PREFIX}{name}.lora_magnitude_vector"] = factors.magnitude
    return tensors


def _config(
    spec: AdapterSpec, layers: Mapping[str, LoraFactors], before_trimming: list[str], base: str
) -> dict[str, Any]:
    """PEFT's LoraConfig for these layers."""
    ranks = {name: factors.lora_a.shape[1] for name, factors in layers.items()}
    rank = max(ranks.values())
    others = {name: r for name, r in ranks.items() if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _alpha(spec.scale, rank),
        "lora_dropout": spec.dropout,
        "use_rslora": False,
        "use_dora": spec.fine_tune_type == "dora",
        **_targets(layers, before_trimming),
        "rank_pattern": others,
        "alpha_pattern": {name: _alpha(spec.scale, r) for name, r in others.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
    }


def _alpha(scale: float, rank: int) -> int | float:
    alpha = scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def _targets(layers: Iterable[str], before_trimming: Iterable[str]) -> dict[str, Any]:
    """target_modules and layers_to_transform: names inside a block where every block has them, else full names."""
    blocks, rest = _by_block(layers)
    everywhere = len({tuple(sorted(names)) for names in blocks.values()}) == 1
    if rest or not everywhere:
        return {"target_modules": sorted(layers), "layers_to_transform": None}
    last = max(_by_block(before_trimming)[0])  # mlx-lm adapts the last blocks, so this is the model's last
    numbers = sorted(blocks)
    whole = numbers == list(range(last + 1))
    return {"target_modules": sorted(blocks[numbers[0]]), "layers_to_transform": None if whole else numbers}


def _by_block(layers: Iterable[str]) -> tuple[dict[int, list[str]], list[str]]:
    """Names inside each numbered block, and the names of layers outside of blocks."""
    blocks: dict[int, list[str]] = {}
    rest = []
    for name in layers:
        if inside := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            blocks.setdefault(int(inside[1]), []).append(inside[2])
        else:
            rest.append(name)
    return blocks, rest


def _base_of(folder: Path, otherwise: str) -> str:
    """The base model that a model folder's card names."""
    from huggingface_hub import ModelCard

    card = folder / "README.md"
    if not card.is_file():
        return otherwise
    try:
        base = ModelCard.load(card).data.get("base_model")
    except (OSError, ValueError, YAMLError):
        return otherwise
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    return base if isinstance(base, str) and base else otherwise
