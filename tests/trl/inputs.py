"""What TRL and mlx-dpo are both run on: tiny model, tokenizer, adapter and rows. make_reference.py writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
SEED = 20
RANK, SCALE = 4, 2.0
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "vocab_size": 300,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
MLX_KEYS = [f"self_attn.{name}" for name in ATTENTION] + [f"mlp.{name}" for name in MLP]


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A prompt: user and assistant take turns, after the system message if there is one."""
    roles = ["user", "assistant"] * len(contents)
    turns = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return ([{"role": "system", "content": system}] if system else []) + turns


PAIRS = [
    (chat("What is the capital of France?"), "The capital of France is Paris.", "It may be Lyon, I think, or Nice."),
    (chat("Is 7 a prime number? Answer with one word."), "Yes", "No, it is not a prime number, since 7 = 2 * 3 + 1."),
    (
        chat("Name three colours.", system="You are a terse assistant."),
        "Red, green, blue.",
        "There are so many colours that one could name! Some that come to mind are red, and green, and also blue.",
    ),
    (
        chat("Hi!", "Hello. What can I do for you?", "Tell me a joke about a cat."),
        "Why did the cat sit on the computer? To keep an eye on the mouse.",
        "No.",
    ),
    (
        chat("Translate to German: good morning", "Guten Morgen", "And: thank you", system="You translate."),
        "Danke schön",
        "Danke, and that is how one would say it — schön!",
    ),
    (chat("Write a line of Python that prints 1 to 3."), "for i in range(1, 4):\n    print(i)", "print 1 2 3"),
    (
        chat("Why is the sky blue? Please explain it so that a child of six would understand what happens up there."),
        "Sunlight is made of all the colours. The air scatters the blue part of it more than the red part, and so "
        "blue light reaches your eyes from everywhere in the sky.",
        "The sky is blue because of the sea.",
    ),
    (chat("2 + 2 ="), "4", "5"),
]


# Which answers the labelled rows are: of which pair, and whether it is the chosen one.
LABELLED = [(0, True), (1, False), (1, True), (2, True), (5, False), (3, True), (4, True), (7, False), (6, True)]


def write_rows(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (HERE / name).write_text("".join(lines), encoding="utf-8")
    return rows


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def write_pairs() -> list[dict[str, Any]]:
    rows = [{"prompt": prompt, "chosen": answer(c), "rejected": answer(r)} for prompt, c, r in PAIRS]
    return write_rows("pairs.jsonl", rows)


def write_raw_pairs() -> list[dict[str, Any]]:
    rows = [{"prompt": prompt[-1]["content"], "chosen": f" {c}", "rejected": f" {r}"} for prompt, c, r in PAIRS]
    return write_rows("raw_pairs.jsonl", rows)


def write_labelled() -> list[dict[str, Any]]:
    rows = []
    for i, label in LABELLED:
        prompt, chosen, rejected = PAIRS[i]
        rows.append({"prompt": prompt, "completion": answer(chosen if label else rejected), "label": label})
    return write_rows("labelled.jsonl", rows)


def write_demonstrations() -> list[dict[str, Any]]:
    return write_rows("demonstrations.jsonl", [{"messages": prompt + answer(chosen)} for prompt, chosen, _ in PAIRS])


def write_tokenizer(folder: Path, rows: list[dict[str, Any]]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [m["content"] for row in rows for part in ("prompt", "chosen", "rejected") for m in row[part]]
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_checkpoint(folder: Path, rng: np.random.Generator) -> None:
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Qwen3ForCausalLM(Qwen3Config(**CONFIG)).named_parameters()}
    weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        weights[name] = 1 + np.float32(0.1) * noise if "norm" in name else np.float32(0.3) * noise
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def write_adapter(folder: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The initial adapter in mlx-lm's format and names; returns its tensors."""
    model = Qwen3ForCausalLM.from_pretrained(HERE / "checkpoint")
    tensors = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for key in MLX_KEYS:
            name = f"model.layers.{layer}.{key}"
            outputs, inputs = model.get_submodule(name).weight.shape
            tensors[f"{name}.lora_a"] = rng.normal(0, inputs**-0.5, (inputs, RANK)).astype(np.float32)
            tensors[f"{name}.lora_b"] = rng.normal(0, 0.05, (RANK, outputs)).astype(np.float32)
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})
    config = {
        "fine_tune_type": "lora",
        "num_layers": CONFIG["num_hidden_layers"],
        "lora_parameters": {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": MLX_KEYS},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tensors
