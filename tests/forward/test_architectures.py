"""Training on tiny random models of the families that mlx-lm users have, 4-bit and float."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import Listener, TrainConfig, train
from tests.conftest import CHECKPOINT, PAIRS
from tests.marks import mostly_slow

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 320,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": MOE,
    "gemma2": {},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2},
    "phi3": {"head_dim": 16, "rope_scaling": None},
    "olmo2": {},
    "granite": {
        "logits_scaling": 4.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen3_next": {
        **MOE,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "shared_expert_intermediate_size": 64,
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 2,
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "full_attn_idxs": [1],
    },
}
QUANTIZATIONS: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "4bit": {"group_size": 32, "bits": 4, "mode": "affine"},
    "8bit": {"group_size": 32, "bits": 8, "mode": "affine"},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
}


def make_model(folder: Path, family: str, quantization: dict[str, Any] | None, dtype: mx.Dtype = mx.float32) -> Path:
    """A random model folder with the tiny checkpoint's tokenizer."""
    module = importlib.import_module(f"mlx_lm.models.{'llama' if family == 'mistral' else family}")
    config = {**COMMON, **FAMILIES[family], "model_type": family, "eos_token_id": 2}
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(dtype)
    if quantization:
        predicate = getattr(model, "quant_predicate", lambda path, m: True)
        nn.quantize(
            model,
            **quantization,
            class_predicate=lambda path, m: hasattr(m, "to_quantized") and predicate(path, m) is not False,
        )
        config["quantization"] = quantization
    folder.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder)
    return folder


class Notes(Listener):
    """What a run tells a person."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(("family", "way"), [("gemma2", "one prompt at a time"), ("llama", None)])
def test_a_model_that_shares_less_is_named_once(tmp_path: Path, family: str, way: str | None) -> None:
    notes = Notes()
    model = make_model(tmp_path / "model", family, None)
    train(TrainConfig(model=str(model), data=str(PAIRS), adapter_path=str(tmp_path / "run"), iters=2), listener=notes)
    assert [way in note and family in note for note in notes.said] == ([True] if way else [])


def trains(model: Path, run: Path, **knobs: Any) -> None:
    settings = {"batch_size": 4, "iters": 4, "learning_rate": 3e-4, "valid_data": str(PAIRS), **knobs}
    if settings.get("fine_tune_type") != "full":
        settings["rank"] = 4
    result = train(TrainConfig(model=str(model), data=str(PAIRS), adapter_path=str(run), **settings))
    assert result.before["rewards/margins"] == 0, "the reference is not the policy it starts from"
    assert result.after["rewards/margins"] > 0
    assert result.after["loss"] < result.before["loss"]
    loaded, _ = mlx_lm.load(str(model), adapter_path=str(run))
    base, _ = mlx_lm.load(str(model))
    ids = mx.array([[5, 6, 7, 8]])
    assert not mx.array_equal(loaded(ids), base(ids))


@pytest.mark.parametrize("bits", mostly_slow(["4bit", "float32"], 2))
@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path: Path, family: str, bits: str) -> None:
    trains(make_model(tmp_path / "model", family, QUANTIZATIONS[bits]), tmp_path / "run")


@pytest.mark.parametrize("bits", ["8bit", "mxfp4"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_other_quantizations(tmp_path: Path, bits: str, kind: str) -> None:
    trains(make_model(tmp_path / "model", "qwen3", QUANTIZATIONS[bits]), tmp_path / "run", fine_tune_type=kind)


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_bfloat16(tmp_path: Path, kind: str) -> None:
    model = make_model(tmp_path / "model", "llama", None, mx.bfloat16)
    trains(model, tmp_path / "run", fine_tune_type=kind, learning_rate=3e-3, grad_checkpoint=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3_text", "qwen3_next", "lfm2"])
def test_grad_checkpoint(tmp_path: Path, family: str) -> None:
    trains(make_model(tmp_path / "model", family, QUANTIZATIONS["4bit"]), tmp_path / "run", grad_checkpoint=True)
