"""Shared by the benchmarks on the bundled model: its true reward, sampling, KL, and pairs of its own answers."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm import load
from mlx_lm.utils import dequantize_model, save_config, save_model

from mlx_dpo.adapters.adapter_folder import load_adapter
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.demo import MODEL
from mlx_dpo.demo.grammar import detect_manner, is_fluent
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SampledCompletion, SamplingParams

MAX_TOKENS = 64
SIDE_BY_SIDE = 512  # sequences that are sampled together: fastest for so small a model
KL_BATCH = 64  # sequences whose logits are in memory together


def polite_and_right(question: str, answer: str) -> float:
    """The true reward, as in examples/ppo.py: 1 for a polite answer that is right, else 0."""
    return float(detect_manner(answer) == "polite" and is_fluent(question, answer))


def write_float_model(folder: Path) -> None:
    """The bundled model with its 4-bit weights written as float32: the same function, trained in less than half the
    time on a CPU.
    """
    if folder.exists():
        return
    made = folder.with_name(f"{folder.name}.part")
    made.mkdir(parents=True, exist_ok=True)
    save_model(made, dequantize_model(load(str(MODEL))[0]))
    config = json.loads((MODEL / "config.json").read_text())
    save_config({key: value for key, value in config.items() if "quantization" not in key}, made / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, made)
    made.rename(folder)


class Sampler:
    """A policy on the bundled model, or on a copy of it, that answers questions at temperature 1 unless given another.

    Args:
        adapter: the policy's adapter; None for the base model.
        folder: of the model.
    """

    def __init__(self, adapter: Path | None = None, folder: str | Path = MODEL) -> None:
        self.model, self.tokenizer = load(str(folder))
        if adapter:
            load_adapter(self.model, adapter)
        self.renderer = ChatRenderer(self.tokenizer)

    def prompt_ids(self, questions: Sequence[str]) -> list[list[int]]:
        """Token ids of each question."""
        return [list(self.renderer.prompt_ids(Prompt(question))) for question in questions]

    def sample(
        self, questions: Sequence[str], count: int, seed: int, temperature: float = 1.0
    ) -> list[list[SampledCompletion]]:
        """Answers to each question."""
        params = SamplingParams(MAX_TOKENS, temperature=temperature, seed=seed)
        prompts = self.prompt_ids(questions)
        return sample_completions(
            self.model, self.tokenizer, prompts, params, n=count, batch_size=max(count, SIDE_BY_SIDE)
        )


def sample_answers(
    adapter: Path | None, questions: Sequence[str], count: int, seed: int, folder: str | Path = MODEL
) -> list[list[str]]:
    """Answers to each question at temperature 1, as texts, of the base model or with an adapter."""
    return [[item.text for item in items] for items in Sampler(adapter, folder).sample(questions, count, seed)]


def judged_pairs(
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
    seed: int,
    reward: Callable[[str, str], float] = polite_and_right,
) -> list[dict[str, str]]:
    """A pair for each question whose answers differ in their true reward, in random order."""
    rng, pairs = random.Random(seed), []
    for question, items in zip(questions, answers, strict=True):
        ranked = sorted(rng.sample(items, len(items)), key=lambda answer: reward(question, answer))
        if reward(question, ranked[-1]) > reward(question, ranked[0]):
            pairs.append({"prompt": question, "chosen": ranked[-1], "rejected": ranked[0]})
    rng.shuffle(pairs)
    return pairs


def answer_kls(
    model: nn.Module, base: Mapping[str, mx.array], sequences: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> np.ndarray:
    """The KL of the policy to the base model at each answer, in nats.

    It is summed over the answer's tokens, at each the exact KL of the next token's distribution. Its mean over sampled
    answers is the KL of whole answers, with less noise than the mean of log pi - log pi_ref has.

    Args:
        model: the policy.
        base: the adapter tensors that make it the base model.
        sequences: token ids of a prompt and of the policy's answer to it.
    """
    kls = np.zeros(len(sequences))
    for indices in _batches_by_length(sequences):
        rows = [[*sequences[i][0], *sequences[i][1]] for i in indices]
        width = max(map(len, rows))
        ids = mx.array([row[:-1] + [0] * (width - len(row)) for row in rows])
        policy = nn.log_softmax(model(ids).astype(mx.float32), axis=-1)
        mx.eval(policy)
        with swap_adapter(model, base):
            reference = nn.log_softmax(model(ids).astype(mx.float32), axis=-1)
            mx.eval(reference)
        per_token = np.array((mx.exp(policy) * (policy - reference)).sum(axis=-1))
        for row, i in enumerate(indices):
            prompt, answer = map(len, sequences[i])
            kls[i] = per_token[row, prompt - 1 : prompt + answer - 1].sum()
    return kls


def _batches_by_length(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[list[int]]:
    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    for start in range(0, len(order), KL_BATCH):
        yield order[start : start + KL_BATCH]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and its 95% interval by Student's t."""
    quantiles = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
    mean, count = float(np.mean(values)), len(values)
    half = quantiles[count - 1] * float(np.std(values, ddof=1)) / count**0.5 if count > 1 else float("nan")
    return mean, mean - half, mean + half
