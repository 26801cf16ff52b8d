"""Make a benchmark case: a random model of Qwen3's or Qwen3.5's shape, its BPE tokenizer, and preference pairs for it.

    python benchmarks/case.py DIR [--hidden 256] [--layers 8] [--vocab 32768] [--bits 32] [--pairs 64]
                              [--prompt-words 120] [--completion-words 50] [--spread 1] [--family qwen3|qwen3_5]

Leaves DIR/model, which mlx-lm loads, DIR/data/train.jsonl and valid.jsonl, and DIR/case.json with the numbers above.
Needs no network: the tokenizer and the texts come from Python's own sources. The weights are random, so a case measures
the speed and the memory of training, and nothing about what is learned.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "chat_template": TEMPLATE,
}
HEAD = 64  # width of an attention head
PROMPT_SPREAD, COMPLETION_SPREAD = 0.4, 0.5  # lengths vary by this share around their mean


@dataclass(frozen=True)
class CaseShape:
    """The sizes of a case. The defaults are those of the comparison with the peers.

    Attributes:
        bits: of the weights; 32 is float32, 16 bfloat16, below that quantized in groups of 64.
        spread: factor on how much lengths vary; with 0, all pairs have the same length in words.
        family: qwen3, or qwen3_5, three of four of whose layers are gated delta layers.
    """

    hidden: int = 256
    layers: int = 8
    vocab: int = 32768
    bits: int = 32
    pairs: int = 64
    prompt_words: int = 120
    completion_words: int = 50
    spread: float = 1.0
    family: str = "qwen3"

    def flags(self) -> list[str]:
        """The command-line flags of this shape."""
        return [text for name, value in asdict(self).items() for text in (f"--{name.replace('_', '-')}", str(value))]

    @property
    def name(self) -> str:
        """A folder name that is unique to this shape."""
        sizes = [f"{f.name.replace('_', '')}{getattr(self, f.name):g}" for f in fields(self) if f.name != "family"]
        return "-".join([*sizes, *([] if self.family == CaseShape.family else [self.family])])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of a `CaseShape`."""
    group = parser.add_argument_group("the case")
    for f in fields(CaseShape):
        kind = type(f.default)
        group.add_argument(f"--{f.name.replace('_', '-')}", type=kind, default=f.default, help=f"default: {f.default}")


def parse_shape(options: argparse.Namespace) -> CaseShape:
    """The shape that the flags of `add_flags` give."""
    return CaseShape(**{f.name: getattr(options, f.name) for f in fields(CaseShape)})


def read_shape(folder: Path) -> CaseShape | None:
    """The shape of the case in a folder; None if there is no complete case."""
    file = folder / "case.json"
    return CaseShape(**json.loads(file.read_text())) if file.exists() else None


def make_case(folder: Path, shape: CaseShape) -> None:
    """Write the case. The same shape gives the same model and, with one version of Python, the same pairs."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    write_tokenizer(folder / "model", min(4096, shape.vocab))
    write_model(folder / "model", shape)
    write_pairs(folder / "data", shape)
    (folder / "case.json").write_text(json.dumps(asdict(shape)) + "\n")  # last, to mark the case as complete


def write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level BPE of Python's standard library."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    corpus = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:200]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(file) for file in corpus], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))


def model_config(shape: CaseShape) -> dict[str, Any]:
    """config.json of the model."""
    config = {
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": 3 * shape.hidden,
        "num_attention_heads": max(1, shape.hidden // HEAD),
        "num_key_value_heads": max(1, shape.hidden // (2 * HEAD)),
        "head_dim": HEAD,
        "rms_norm_eps": 1e-6,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "eos_token_id": SPECIAL.index("<|im_end|>"),
    }
    if shape.family == "qwen3":
        return config
    heads = max(1, shape.hidden // HEAD)
    text = {
        **config,
        "model_type": "qwen3_5_text",
        "num_experts": 0,
        "full_attention_interval": 4,
        "linear_num_value_heads": heads,
        "linear_num_key_heads": heads,
        "linear_key_head_dim": 2 * HEAD,
        "linear_value_head_dim": 2 * HEAD,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {"type": "default", "rope_theta": config["rope_theta"], "partial_rotary_factor": 0.5},
    }
    shared = {name: config[name] for name in ("eos_token_id", "tie_word_embeddings")}
    return {"model_type": "qwen3_5", "text_config": text, **shared}


def write_model(folder: Path, shape: CaseShape) -> None:
    """Random weights, as mlx-lm initializes them."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    mx.random.seed(0)
    config = model_config(shape)
    model_class, arguments_class = _get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    if shape.bits < 16:
        nn.quantize(model, 64, shape.bits)
        config["quantization"] = {"group_size": 64, "bits": shape.bits}
    elif shape.bits == 16:
        model.set_dtype(mx.bfloat16)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def write_pairs(folder: Path, shape: CaseShape) -> None:
    """Random passages of argparse.py's source as prompts and completions."""
    words = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text(encoding="utf-8").split()
    rng = random.Random(0)

    def passage(mean: int, spread: float) -> str:
        count = max(2, int(mean * rng.uniform(1 - spread, 1 + spread)))
        start = rng.randrange(len(words) - count)
        return " ".join(words[start : start + count])

    spreads = PROMPT_SPREAD * shape.spread, COMPLETION_SPREAD * shape.spread
    for name, count in (("train", shape.pairs), ("valid", 8)):
        with (folder / f"{name}.jsonl").open("w") as f:
            for _ in range(count):
                prompt = passage(shape.prompt_words, spreads[0])
                chosen, rejected = (passage(shape.completion_words, spreads[1]) for _ in range(2))
                f.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    add_flags(parser)
    options = parser.parse_args()
    make_case(options.folder, parse_shape(options))


if __name__ == "__main__":
    main()
