"""GGUF files, read back with the gguf package and compared tensor by tensor with what the conventions ask for."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.errors import UserError
from mlx_dpo.export.gguf.gguf_export import write_gguf, write_gguf_lora
from mlx_dpo.training.run_folder import RunFolder
from tests.conftest import CHECKPOINT, TRL
from tests.export.tiny import FAMILIES, LLAMA3_ROPE, make_model

# llama.cpp's names, from its sources (gguf-py/gguf/constants.py)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {  # of gemma2 and gemma3, which have four a block
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def name_in_gguf(name: str, kind: str) -> str:
    module, _, part = name.removeprefix("language_model.").rpartition(".")
    names = NAMES | (GEMMA_NORMS if kind in ("gemma2", "gemma3", "gemma3_text") else NORMS)
    if block := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module):
        return f"blk.{block[1]}.{names[block[2]]}.{part}"
    return f"{names[module]}.{part}"


def turned(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k [heads * dims, ...] as llama.cpp's rotation takes them, row by row: the two that mlx-lm turns
    together, i and i + dims / 2 of a head, side by side."""
    dims = len(rows) // heads
    order = [h * dims + i + half for h in range(heads) for i in range(dims // 2) for half in (0, dims // 2)]
    return rows[order]


def expected_tensors(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """Every tensor in float32, from mlx-lm's own dequantization of the whole model."""
    from mlx_lm.utils import dequantize_model

    model, _ = load_model(folder)
    model.set_dtype(mx.float32, lambda dtype: mx.issubdtype(dtype, mx.floating))
    model = dequantize_model(model)
    expected = {}
    for name, value in tree_flatten(model.parameters()):
        if "rope" in name:
            continue
        tensor = np.array(value.astype(mx.float32))
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads and kind in ("llama", "mistral"):
            tensor = turned(tensor, heads)
        if kind.startswith("gemma") and name.endswith("norm.weight"):
            tensor = 1 + tensor
        expected[name_in_gguf(name, kind)] = tensor
    return expected


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(file)
    return {k: v.contents() for k, v in reader.fields.items()}, {t.name: t for t in reader.tensors}


def q8_0(rows: np.ndarray) -> np.ndarray:
    """Q8_0 and back: 32 numbers by the largest of them over 127, in float16 (ggml-quants.c)."""
    blocks = rows.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, 0, 1 / scale)
    scaled = blocks * inverse
    whole = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
    return (whole * scale.astype(np.float16).astype(np.float32)).reshape(rows.shape)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_tensor(tmp_path: Path, kind: str) -> None:
    folder = make_model(tmp_path / "model", kind)
    expected = expected_tensors(folder, kind)
    for stored in ("f32", "f16", "q8_0"):
        write_gguf(folder, tmp_path / f"{stored}.gguf", stored)  # type: ignore[arg-type]
        _, tensors = read_gguf(tmp_path / f"{stored}.gguf")
        assert tensors.keys() - {"rope_freqs.weight"} == expected.keys()
        for name, tensor in expected.items():
            actual = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
            if tensor.ndim == 1:
                assert tensors[name].tensor_type.name == "F32"
                np.testing.assert_array_equal(actual, tensor, err_msg=name)
            elif stored in ("f32", "f16"):
                assert tensors[name].tensor_type.name == stored.upper()
                np.testing.assert_array_equal(actual, tensor.astype(f"f{int(stored[1:]) // 8}"), err_msg=name)
            else:
                assert tensors[name].tensor_type.name == "Q8_0"
                np.testing.assert_array_equal(actual, q8_0(tensor), err_msg=name)


@pytest.mark.parametrize("quantization", [("affine", 4, 32), ("affine", 6, 64), ("mxfp4", 4, 32), ("nvfp4", 4, 16)])
@pytest.mark.parametrize(("kind", "dtype"), [("llama", mx.bfloat16), ("qwen3", mx.float32)])
def test_quantized_weights_are_dequantized(
    tmp_path: Path, kind: str, dtype: mx.Dtype, quantization: tuple[str, int, int]
) -> None:
    """In float32, and not in the float type of their scales."""
    mode, bits, group = quantization
    options = {"mode": mode, "bits": bits, "group_size": group}
    folder = make_model(tmp_path / "model", kind, options, dtype=dtype, intermediate_size=128)
    write_gguf(folder, tmp_path / "out.gguf")
    _, tensors = read_gguf(tmp_path / "out.gguf")
    for name, tensor in expected_tensors(folder, kind).items():
        np.testing.assert_array_equal(tensors[name].data, tensor.astype(tensors[name].data.dtype), err_msg=name)


def test_rows_that_are_no_whole_blocks_stay_float16(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3", intermediate_size=72)
    write_gguf(folder, tmp_path / "out.gguf", "q8_0")
    _, tensors = read_gguf(tmp_path / "out.gguf")
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"


def test_a_large_matrix_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "model", "llama", {"group_size": 32, "bits": 4})
    write_gguf(folder, tmp_path / "whole.gguf", "q8_0")
    monkeypatch.setattr(sys.modules["mlx_dpo.export.gguf.gguf_tensors"], "CHUNK_ELEMENTS", 1000)
    write_gguf(folder, tmp_path / "pieces.gguf", "q8_0")
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_no_more_than_a_tensor_is_in_memory(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3", num_hidden_layers=40, intermediate_size=2048)
    size = (folder / "model.safetensors").stat().st_size
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    write_gguf(folder, tmp_path / "out.gguf")
    assert size > 60e6 and mx.get_peak_memory() - before < size / 10


# What else is in the file


@pytest.mark.parametrize(("kind", "key", "value"), [
    ("llama", "llama.rope.freq_base", 10000.0),
    ("mistral", "llama.rope.scaling.factor", 2.0),
    ("mistral", "llama.rope.scaling.type", "linear"),
    ("qwen3", "qwen3.attention.key_length", 32),
    ("qwen2", "qwen2.attention.head_count_kv", 2),
    ("gemma2", "gemma2.attn_logit_softcapping", 50.0),
    ("gemma3", "gemma3.attention.sliding_window", 8),
    ("gemma3", "gemma3.rope.scaling.factor", 8.0),
    ("gemma3_text", "gemma3.rope.freq_base_swa", 10000.0),
    ("gemma3_text", "gemma3.block_count", 6),
])  # fmt: skip
def test_parameters(tmp_path: Path, kind: str, key: str, value: Any) -> None:
    write_gguf(make_model(tmp_path / "model", kind), tmp_path / "out.gguf")
    fields, _ = read_gguf(tmp_path / "out.gguf")
    assert fields[key] == value
    architecture = fields["general.architecture"]
    assert fields[f"{architecture}.context_length"] == 512 and fields[f"{architecture}.embedding_length"] == 64
    assert fields[f"{architecture}.attention.layer_norm_rms_epsilon"] == np.float32(1e-5)
    assert fields["general.name"] == "model"  # the folder's
    assert fields["general.type"] == "model" and fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16


def test_llama3s_rotary_factors(tmp_path: Path) -> None:
    """As transformers computes them (modeling_rope_utils.py), over the plain frequencies."""
    write_gguf(make_model(tmp_path / "model", "llama"), tmp_path / "out.gguf")
    _, tensors = read_gguf(tmp_path / "out.gguf")
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    length, factor = LLAMA3_ROPE["original_max_position_embeddings"], LLAMA3_ROPE["factor"]
    smooth = (length * plain / (2 * np.pi) - 1) / (4 - 1)
    slowed = np.where(smooth < 0, plain / factor, (1 - smooth) * plain / factor + smooth * plain)
    expected = plain / np.where(smooth > 1, plain, slowed)
    assert len(set(expected.round(3))) > 1
    np.testing.assert_allclose(tensors["rope_freqs.weight"].data, expected, rtol=1e-5)


# Adapters


def make_adapter(model: Path, folder: Path, **spec: Any) -> dict[str, np.ndarray]:
    loaded, _ = load_model(model)
    options = {"fine_tune_type": "lora", "num_layers": -1, "rank": 3, "scale": 2.5, **spec}
    attached = attach_adapter(loaded, AdapterSpec(**options))
    tensors = {name: mx.random.normal(v.shape) for name, v in trainable_tensors(loaded).items()}
    folder.mkdir()
    RunFolder(folder).save_adapter(tensors, attached, str(model))
    return {name: np.array(v) for name, v in tensors.items()}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_an_adapter_by_itself(tmp_path: Path, kind: str) -> None:
    model = make_model(tmp_path / "model", kind, {"group_size": 32, "bits": 4})
    own = make_adapter(model, tmp_path / "run")
    write_gguf_lora(model, tmp_path / "run", tmp_path / "out.gguf")
    fields, tensors = read_gguf(tmp_path / "out.gguf")
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 2.5 * 3 and len(tensors) == len(own)
    for name, tensor in own.items():
        layer, _, part = name.rpartition(".")
        expected = tensor.T
        heads = {"q_proj": 4, "k_proj": 2}.get(layer.split(".")[-1])
        if part == "lora_b" and heads and kind == "llama":
            expected = turned(expected, heads)
        actual = tensors[f"{name_in_gguf(f'{layer}.weight', kind)}.{part}"]
        assert actual.tensor_type.name == "F32"
        np.testing.assert_array_equal(actual.data, expected, err_msg=name)


def test_dora_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "qwen3")
    make_adapter(model, tmp_path / "run", fine_tune_type="dora")
    with pytest.raises(UserError, match="DoRA"):
        write_gguf_lora(model, tmp_path / "run", tmp_path / "out.gguf")


# Refusals


def changed(folder: Path, **config: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


REFUSED = [
    ("qwen3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("qwen2", {"rope_traditional": True}, "rope_traditional"),
    ("llama", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "sliding window"),
    ("gemma3_text", {"sliding_window_pattern": 2}, "sliding_window_pattern 2"),
    ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar 144"),
]


@pytest.mark.parametrize(("kind", "config", "message"), REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, kind: str, config: dict[str, Any], message: str
) -> None:
    folder = changed(make_model(tmp_path / "model", kind), **config)
    with pytest.raises(UserError, match=message):
        write_gguf(folder, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*"))


def test_another_type_is_refused(tmp_path: Path) -> None:
    from tests.forward.test_architectures import make_model as other

    with pytest.raises(UserError, match=r"'olmo2'.*GGUF"):
        write_gguf(other(tmp_path / "model", "olmo2", None), tmp_path / "out.gguf")


def test_numbers_without_a_place_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))
    weights = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(weights)  # mlx reads late, and the file is about to be replaced
    weights["model.layers.0.mlp.up_proj.weight"] = 1e6 * mx.ones_like(weights["model.layers.0.mlp.up_proj.weight"])
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight.*F16"):
        write_gguf(folder, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))
    write_gguf_lora(folder, TRL / "adapter", tmp_path / "lora.gguf")


def test_without_the_package_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"mlx-dpo\[gguf\]"):
        write_gguf(CHECKPOINT, tmp_path / "out.gguf")


def test_a_layer_without_a_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "model", "qwen3")
    mlx_lm_model = sys.modules["mlx_lm.models.qwen3"].MLP
    init = mlx_lm_model.__init__

    def with_more(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.gate_of_mine = nn.Linear(2, 2)

    monkeypatch.setattr(mlx_lm_model, "__init__", with_more)
    weights = dict(mx.load(str(folder / "model.safetensors")))
    mx.eval(weights)  # mlx reads late, and the file is about to be replaced
    for layer in (0, 1):
        weights |= {
            f"model.layers.{layer}.mlp.gate_of_mine.{k}": mx.zeros(s) for k, s in (("weight", (2, 2)), ("bias", 2))
        }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    with pytest.raises(UserError, match=r"no place for.*gate_of_mine"):
        write_gguf(folder, tmp_path / "out.gguf")


def test_experts_of_a_type_without_a_place_name_fuse_and_no_keys_that_would_not_help(tmp_path: Path) -> None:
    from tests.export.family_models import save_adapter, save_model

    model = save_model(tmp_path / "model", "qwen3_moe")
    save_adapter(tmp_path / "adapter", model, ["mlp.switch_mlp.up_proj", "self_attn.q_proj"])
    with pytest.raises(UserError, match=r"(?s)'qwen3_moe'.*mlx-dpo fuse --adapter-path") as raised:
        write_gguf_lora(model, tmp_path / "adapter", tmp_path / "out.gguf")
    assert "--lora-keys" not in str(raised.value)


def test_embeddings_in_an_adapter_name_fuse_and_the_other_layers(tmp_path: Path) -> None:
    from tests.export.family_models import save_adapter, save_model

    model = save_model(tmp_path / "model", "qwen3")
    save_adapter(tmp_path / "adapter", model, ["model.embed_tokens", "self_attn.q_proj"])
    with pytest.raises(UserError, match=r"(?s)embed_tokens.*mlx-dpo fuse .*--lora-keys self_attn.q_proj$"):
        write_gguf_lora(model, tmp_path / "adapter", tmp_path / "out.gguf")


def test_named_chat_templates_are_in_the_file(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": config.pop("chat_template")}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    fields = gguf.GGUFReader(write_gguf(folder, tmp_path / "out.gguf")).fields
    assert fields["tokenizer.chat_template.tool_use"].contents() == "tools"
    assert "im_start" in fields["tokenizer.chat_template"].contents()
