"""Write mlx-lm adapters in PEFT's format; see `peft_format`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.adapters.adapter_folder import is_reward_model
from mlx_dpo.adapters.reward_head import read_reward_head
from mlx_dpo.adapters.spec import AdapterSpec, Tensors
from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.lora_factors import LoraFactors, alternatives_hint, load_adapter_factors, reject_layers
from mlx_dpo.export.peft.peft_base_model import transformers_base_model
from mlx_dpo.export.peft.peft_format import (
    PEFT_CLASSIFIER,
    PEFT_CONFIG_FILE,
    PEFT_PREFIX,
    PEFT_REWARD_HEAD,
    PEFT_WEIGHTS_FILE,
    WITHOUT_CLASSIFIER,
    require_supported_model_type,
    transformers_layer_name,
)
from mlx_dpo.lineage.lineage_file import BaseModel, Lineage, write_lineage
from mlx_dpo.lineage.lineage_steps import base_of_adapter, converted_lineage, read_adapter_lineage
from mlx_dpo.lineage.model_identity import identify_model
from mlx_dpo.utils.atomic_write import write_new

_ROUTERS = (".mlp.gate", ".block_sparse_moe.gate")  # not linear layers in transformers


def export_peft(model: str, adapter_path: str | Path, save_path: str | Path, *, base_model: str | None = None) -> Path:
    """Write an mlx-lm adapter folder as one that PEFT loads.

    A reward model becomes an adapter of transformers' AutoModelForSequenceClassification with `num_labels=1`, whose
    head, `score`, it replaces. Its logit is the reward.

    Columns that are zero in both factors, as `import_peft` pads with, are left out.

    Args:
        model: folder or Hub id of the model that the adapter was trained on.
        adapter_path: the adapter's folder.
        save_path: the new folder.
        base_model: the model that transformers loads the adapter onto, a folder or a Hub id. Default: see
            `transformers_base_model`.

    Returns:
        The new folder.

    Raises:
        UserError: an argument is wrong, `base_model` is needed and missing, or PEFT can't hold the adapter.
    """
    where = Where(str(adapter_path))
    adapter = load_adapter_factors(model, adapter_path, require_supported_model_type)
    model_type = require_supported_model_type(adapter.loaded_model)
    routers = [name for name in adapter.layers if name.endswith(_ROUTERS)]
    hint = alternatives_hint(adapter_path, set(adapter.layers) - set(routers))
    reject_layers(routers, "PEFT can't adapt the router of experts", where, hint)
    untrimmed = {transformers_layer_name(model_type, name): factors for name, factors in adapter.layers.items()}
    trimmed = {name: _without_padding(factors) for name, factors in untrimmed.items()}
    layers = {name: factors for name, factors in trimmed.items() if factors.rank}
    if not layers:
        raise UserError("this adapter is zero in every layer", where=where)
    recorded = read_adapter_lineage(adapter_path)
    trained_on = base_of_adapter(recorded, model, adapter.loaded_model.path)
    named = identify_model(base_model) if base_model else transformers_base_model(trained_on, adapter.loaded_model)
    head = read_reward_head(adapter_path) if is_reward_model(adapter_path) else None
    if head is not None and model_type in WITHOUT_CLASSIFIER:
        message = f"transformers has no sequence classifier for models of type {model_type!r} that would take it"
        raise UserError(message, where=where, hint="Use it through mlx-dpo: score, evaluate, label --judge.")
    config = _peft_config(adapter.spec, layers, list(untrimmed), named, has_reward_head=head is not None)
    lineage = converted_lineage(replace(recorded or Lineage("adapter", None), base=trained_on), named, "peft")
    with write_new(save_path) as folder:
        folder.mkdir()
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / PEFT_CONFIG_FILE).write_text(text, encoding="utf-8")
        write_lineage(folder, lineage)
        tensors = _peft_tensors(layers)
        if head is not None:
            tensors[f"{PEFT_PREFIX}{PEFT_REWARD_HEAD}.weight"] = head
        mx.save_safetensors(str(folder / PEFT_WEIGHTS_FILE), tensors, metadata={"format": "pt"})
    return Path(save_path)


def _without_padding(factors: LoraFactors) -> LoraFactors:
    used = mx.any(factors.lora_a != 0, axis=0) | mx.any(factors.lora_b != 0, axis=1)
    rank = int(mx.max(mx.where(used, mx.arange(1, used.size + 1), 0)))
    if factors.magnitude is not None:
        rank = max(rank, 1)  # PEFT has no layers of rank 0, and DoRA's magnitude has an effect without factors
    return LoraFactors(factors.lora_a[:, :rank], factors.lora_b[:rank], factors.magnitude)


def _peft_tensors(layers: Mapping[str, LoraFactors]) -> Tensors:
    tensors = {}
    for name, factors in layers.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = mx.contiguous(factors.lora_a.T)
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = mx.contiguous(factors.lora_b.T)
        if factors.magnitude is not None:
            tensors[f"{PEFT_PREFIX}{name}.lora_magnitude_vector"] = factors.magnitude
    return tensors


def _peft_config(
    spec: AdapterSpec,
    layers: Mapping[str, LoraFactors],
    untrimmed: list[str],
    base_model: BaseModel,
    *,
    has_reward_head: bool,
) -> dict[str, Any]:
    """PEFT's LoraConfig for these layers."""
    ranks = {name: factors.rank for name, factors in layers.items()}
    max_rank = max(ranks.values())
    smaller_ranks = {name: rank for name, rank in ranks.items() if rank != max_rank}
    return {
        "peft_type": "LORA",
        "task_type": PEFT_CLASSIFIER if has_reward_head else "CAUSAL_LM",
        "base_model_name_or_path": base_model.repo_id if base_model.revision else base_model.name,
        **({"revision": base_model.revision} if base_model.revision else {}),
        "r": max_rank,
        "lora_alpha": _lora_alpha(spec.scale, max_rank),
        "lora_dropout": spec.dropout,
        "use_rslora": False,
        "use_dora": spec.fine_tune_type == "dora",
        **_target_modules(layers, untrimmed),
        "rank_pattern": smaller_ranks,
        "alpha_pattern": {name: _lora_alpha(spec.scale, rank) for name, rank in smaller_ranks.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": [PEFT_REWARD_HEAD] if has_reward_head else None,
    }


def _lora_alpha(scale: float, rank: int) -> int | float:
    alpha = scale * rank
    return int(alpha) if alpha == int(alpha) else alpha


def _target_modules(layers: Iterable[str], untrimmed: Iterable[str]) -> dict[str, Any]:
    """target_modules and layers_to_transform: names inside a block if all blocks have the same, else full names."""
    blocks, outside_blocks = _group_by_block(layers)
    is_uniform = len({tuple(sorted(names)) for names in blocks.values()}) == 1
    if outside_blocks or not is_uniform:
        return {"target_modules": sorted(layers), "layers_to_transform": None}
    last_block = max(_group_by_block(untrimmed)[0])  # mlx-lm adapts the last blocks, so this is the model's last
    indices = sorted(blocks)
    all_blocks = indices == list(range(last_block + 1))
    return {"target_modules": sorted(blocks[indices[0]]), "layers_to_transform": None if all_blocks else indices}


def _group_by_block(layers: Iterable[str]) -> tuple[dict[int, list[str]], list[str]]:
    """Names inside each block by its index, and the names of layers outside blocks."""
    blocks: dict[int, list[str]] = {}
    outside_blocks = []
    for name in layers:
        if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            blocks.setdefault(int(match[1]), []).append(match[2])
        else:
            outside_blocks.append(name)
    return blocks, outside_blocks
