"""PPO and RLOO on the bundled model: polite answers to unseen questions, close to the model that it starts from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlx_lm import load

from mlx_dpo.adapters.adapter_folder import load_adapter
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
from tests.marks import mostly_slow

EXAMPLE = Path(__file__).parents[3] / "examples" / "ppo.py"


def measure(adapter: Path | None) -> dict[str, float]:
    """Of two answers to each of 128 held-out questions at temperature 1: shares, and the KL of an answer in nats."""
    model, tokenizer = load(str(MODEL))
    base = load_adapter(model, adapter)[1] if adapter else {}
    questions, renderer = [str(row["prompt"]) for row in load_pairs("valid")], ChatRenderer(tokenizer)
    prompts = [tuple(renderer.prompt_ids(Prompt(question))) for question in questions]
    params = SamplingParams(max_tokens=64, temperature=1.0)
    answers = sample_completions(model, tokenizer, prompts, params, n=2)
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
    }


@pytest.mark.parametrize("loss", mostly_slow(["ppo", "rloo"], 2))
def test_the_example_runs(tmp_path: Path, loss: str) -> None:
    command = [sys.executable, EXAMPLE, tmp_path, "1", loss]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("step 1: score 0.")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_politeness_and_kl(tmp_path: Path, seed: int) -> None:
    subprocess.run([sys.executable, EXAMPLE, tmp_path, "52", "ppo", str(seed)], capture_output=True, check=True)
    after = measure(tmp_path / "adapter")
    assert after["polite"] >= 0.8 and after["fluent"] >= 0.93 and 0 < after["kl"] < 1.2, after
