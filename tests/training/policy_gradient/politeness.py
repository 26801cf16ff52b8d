"""How polite and how far from its reference an adapter of the bundled model is; `python -m ... FOLDER` prints it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mlx_lm import load

from mlx_dpo.adapters.adapter_folder import apply_adapter
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.examples import Completion, Prompt
from mlx_dpo.data.micro_batches import split_into_micro_batches
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import Network
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SamplingParams


def measure_politeness(adapter: Path | None, n: int = 8) -> dict[str, float]:
    """Of n answers to each of 128 held-out questions at temperature 1: shares, and the KL of an answer in nats."""
    model, tokenizer = load(str(MODEL))
    base = apply_adapter(model, adapter)
    questions, renderer = [str(row["prompt"]) for row in load_pairs("valid")], ChatRenderer(tokenizer)
    prompts = [tuple(renderer.prompt_ids(Prompt(question))) for question in questions]
    params = SamplingParams(max_tokens=64, temperature=1.0)
    answers = sample_completions(model, tokenizer, prompts, params, n=n)
    encoded = [
        EncodedExample(prompt, (answer.token_ids,), Completion("", ""))
        for prompt, of_prompt in zip(prompts, answers, strict=True)
        for answer in of_prompt
    ]
    network, kls = Network.from_model(model), list[float]()
    for micro in split_into_micro_batches(encoded, MemoryModel(network).fits):
        policy = network.logps(micro).sums
        with swap_adapter(model, base):
            kls += (policy - network.logps(micro).sums).tolist()
    texts = [(question, answer.text) for question, items in zip(questions, answers, strict=True) for answer in items]
    return {
        "polite": float(np.mean([detect_manner(text) == "polite" for _, text in texts])),
        "fluent": float(np.mean([is_fluent(*pair) for pair in texts])),
        "kl": float(np.mean(kls)),
        "kl_error": float(np.std(kls) / len(kls) ** 0.5),
    }


if __name__ == "__main__":
    print(measure_politeness(Path(sys.argv[1]) if sys.argv[1:] else None))
