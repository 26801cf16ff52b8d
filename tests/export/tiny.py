"""Tiny random model folders of the types that GGUF files are written of."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from tests.conftest import CHECKPOINT

SPM = Path(__file__).parent / "spm"  # 400 tokens
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 400,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
GEMMA3 = {"query_pre_attn_scalar": 16, "num_hidden_layers": 6, "sliding_window": 8, "rope_theta": 1e6}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": False},
    "mistral": {"sliding_window": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen2": {},
    "qwen3": {"head_dim": 32, "rope_scaling": None},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": GEMMA3,
    "gemma3": {
        "text_config": {
            **COMMON,
            **GEMMA3,
            "model_type": "gemma3_text",
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }
    },
}


def make_model(
    folder: Path,
    kind: str,
    quantization: dict[str, Any] | None = None,
    tokenizer: Path = SPM,
    dtype: mx.Dtype = mx.float32,
    **config: Any,
) -> Path:
    """A model folder with nothing left at the zeros and ones that a layer begins with."""
    module = importlib.import_module(f"mlx_lm.models.{'llama' if kind == 'mistral' else kind}")
    model_config = {**COMMON, **FAMILIES[kind], **config, "model_type": kind}
    mx.random.seed(5)
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(model_config))))
    if kind.startswith("gemma3"):
        model.sanitize({"language_model": {"x": mx.zeros(1)}} if kind == "gemma3" else {})  # drops the untied head
    noisy = [(name, v + 0.05 * mx.random.normal(v.shape)) for name, v in tree_flatten(model.parameters())]
    model.update(tree_unflatten(noisy))
    model.set_dtype(dtype)
    if quantization:
        nn.quantize(model, **quantization)
        model_config["quantization"] = quantization
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(model_config))
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    return folder


BPE = CHECKPOINT  # 300 tokens, byte-level
