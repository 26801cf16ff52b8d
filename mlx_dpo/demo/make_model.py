"""Makes the demo's model and pairs: `python -m mlx_dpo.demo.make_model [--seed 0]`.

A Llama with 0.7 million weights learns the language of `grammar` from scratch in float32, both manners in equal parts.
In the last part of the training, the forward pass quantizes the weights to 4 bits, as they will be stored. The
questions are split into three disjoint sets: for pretraining, for the pairs, and for the held-out pairs. The same seed
makes the same pairs, and on the same machine the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.utils import quantize_model, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_dpo.demo import MODEL, PAIRS
from mlx_dpo.demo.grammar import MANNERS, questions, write_answer

TRAIN_PAIRS, VALID_PAIRS = 800, 128
STEPS, BATCH, PEAK_RATE = 3600, 32, 3e-3
QUANTIZED_FROM = 0.6  # share of the steps after which the forward pass quantizes the weights
GROUP_SIZE, BITS = 32, 4

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "vocab_size": 1280,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def split_questions(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """All questions in three parts: for pretraining, for the pairs, for the held-out pairs."""
    shuffled = rng.sample(list(questions()), len(questions()))
    pairs_end = VALID_PAIRS + TRAIN_PAIRS
    return shuffled[pairs_end:], shuffled[VALID_PAIRS:pairs_end], shuffled[:VALID_PAIRS]


def make_pairs(folder: Path, seed: int) -> list[str]:
    """Write train.jsonl and valid.jsonl. Returns the questions for pretraining."""
    rng = random.Random(seed)
    pretraining, paired, held_out = split_questions(rng)
    folder.mkdir(parents=True, exist_ok=True)
    _write_pairs(folder / "train.jsonl", paired, rng)
    _write_pairs(folder / "valid.jsonl", held_out, rng)
    return pretraining


def _write_pairs(file: Path, subset: list[str], rng: random.Random) -> None:
    """Write a row for each question, with a polite chosen answer and a curt rejected one."""
    rows = []
    for question in subset:
        chosen, rejected = (write_answer(questions()[question], manner, rng) for manner in MANNERS)
        rows.append(json.dumps({"prompt": question, "chosen": chosen, "rejected": rejected}) + "\n")
    file.write_text("".join(rows), encoding="utf-8")


def conversations(subset: list[str], rng: random.Random) -> Iterator[list[dict[str, str]]]:
    """Endless questions with answers; each question is followed by itself with the other manner."""
    while True:
        for question in rng.sample(subset, len(subset)):
            for manner in MANNERS:
                reply = write_answer(questions()[question], manner, rng)
                yield [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on these texts, with a ChatML template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        chat_template=TEMPLATE,
        model_max_length=CONFIG["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def next_token_loss(model: nn.Module, ids: mx.array, pad: int, start: int) -> mx.array:
    """Mean cross-entropy over the tokens of `ids` [batch, length].

    Tokens of the question have a tenth of the weight, since they are mostly random.

    Args:
        model: the model.
        ids: token ids.
        pad: id of the padding token.
        start: id of the token that starts a message.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]
    in_answer = mx.cumsum(inputs == start, axis=1) == 2
    weight = mx.where(in_answer, 1.0, 0.1) * (targets != pad)
    return (nn.losses.cross_entropy(model(inputs), targets) * weight).sum() / weight.sum()


def fake_quantize(weights: Any) -> Any:
    """The weights as quantization will round them, with a straight-through gradient."""

    def quantize(weight: mx.array) -> mx.array:
        if weight.ndim < 2:
            return weight
        quantized = mx.quantize(mx.stop_gradient(weight), group_size=GROUP_SIZE, bits=BITS)
        return weight + mx.stop_gradient(mx.dequantize(*quantized, group_size=GROUP_SIZE, bits=BITS) - weight)

    return tree_map(quantize, weights)


def pretrain(model: nn.Module, batches: Iterator[mx.array], pad: int, start: int, steps: int) -> None:
    """Train on next tokens with AdamW and a cosine learning rate with warmup."""
    warmup = steps // 20
    rate = optim.join_schedules(
        [optim.linear_schedule(0.0, PEAK_RATE, warmup), optim.cosine_decay(PEAK_RATE, steps - warmup)], [warmup]
    )
    optimizer = optim.AdamW(learning_rate=rate, betas=[0.9, 0.98], weight_decay=0.01, bias_correction=True)
    weights = model.trainable_parameters()
    for step in range(steps):
        transform = fake_quantize if step >= QUANTIZED_FROM * steps else (lambda unchanged: unchanged)

        def compute_loss(weights: Any, ids: mx.array, transform: Any = transform) -> mx.array:
            model.update(transform(weights))
            return next_token_loss(model, ids, pad, start)

        loss, gradient = mx.value_and_grad(compute_loss)(weights, next(batches))
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        weights = optimizer.apply_gradients(gradient, weights)
        mx.eval(loss, weights, optimizer.state)
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)
    model.update(weights)


def token_batches(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[mx.array]:
    """Endless batches of token ids [batch, length], padded on the right to a multiple of 8."""
    while True:
        batch = [next(texts) for _ in range(BATCH)]
        yield mx.array(tokenizer(batch, padding=True, pad_to_multiple_of=8)["input_ids"])


def make_model(folder: Path, subset: list[str], seed: int, steps: int) -> None:
    """Pretrain tokenizer and model on these questions, and save them as an mlx-lm folder."""
    stream = conversations(subset, random.Random(seed))
    contents = [message["content"] for _ in range(20_000) for message in next(stream)]
    roles = ["system", "user", "assistant"] * 1000  # frequent enough to become tokens
    tokenizer = make_tokenizer(roles + contents)
    texts = (tokenizer.apply_chat_template(messages, tokenize=False) for messages in stream)

    mx.random.seed(seed)
    model = Model(ModelArgs.from_dict(CONFIG))
    pad, start = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, START))
    pretrain(model, token_batches(texts, tokenizer), pad, start, steps)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad}
    model, config = quantize_model(model, {**CONFIG, **ids}, GROUP_SIZE, BITS)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def main() -> None:
    """Make both, with the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Make the demo's model and pairs.")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder the model is written to")
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="folder the pairs are written to")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    pretraining = make_pairs(arguments.pairs, arguments.seed)
    make_model(arguments.model, pretraining, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
