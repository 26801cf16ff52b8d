"""By default evaluations, KL and samples take at most a tenth of a run of 1,000 pairs, counted in tokens."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from mlx_dpo.cli.app import app
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.activation_memory import BatchCost
from mlx_dpo.forward.network import Network
from mlx_dpo.reporting import run_recorder
from mlx_dpo.training.trainer import Trainer
from tests.conftest import CHECKPOINT

NUM_ROWS = 1064  # 64 of them are held out
WORDS = ["the", "capital", "of", "France", "is", "Paris", "and", "a", "prime", "number", "has", "no", "divisor"]
NUM_WORDS = 20  # of prompts and of completions, about five tokens each


class WorkCounter:
    """Counts tokens through the blocks and products with the head, in optimizer steps and outside of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.is_step = False
        hidden_states, build_backward, logits = Network.lazy_hidden_states, Network.lazy_backward, Network.logits
        step, generate = Trainer.step, run_recorder.generate_from_token_ids

        def count(kind: str, amount: int) -> None:
            self.counts["training" if self.is_step else "measuring", kind] += amount

        def counted_hidden_states(network: Network, batch: MicroBatch) -> mx.array:
            count("tokens", BatchCost.from_batch(batch, network.sharing).tokens)
            return hidden_states(network, batch)

        def counted_backward(network: Network, batch: MicroBatch, *arguments: Any) -> Any:
            if self.is_step:  # else it measures the memory of activations, once
                count("tokens", 3 * BatchCost.from_batch(batch, network.sharing).tokens)
            return build_backward(network, batch, *arguments)

        def counted_logits(network: Network, states: mx.array) -> mx.array:
            count("head", states.shape[0])
            return logits(network, states)

        def counted_step(trainer: Trainer, batch: Any) -> None:
            self.is_step = True
            step(trainer, batch)
            self.is_step = False

        def counted_generate(model: Any, tokenizer: Any, prompts: list[Any], params: Any) -> list[str]:
            count("tokens", sum(map(len, prompts)) + len(prompts) * params.max_tokens)
            count("head", len(prompts) * params.max_tokens)
            return generate(model, tokenizer, prompts, params)

        patch.setattr(Network, "lazy_hidden_states", counted_hidden_states)
        patch.setattr(Network, "lazy_backward", counted_backward)
        patch.setattr(Network, "logits", counted_logits)
        patch.setattr(Trainer, "step", counted_step)
        patch.setattr(run_recorder, "generate_from_token_ids", counted_generate)

    def measuring_share(self, kind: str) -> float:
        measuring = self.counts["measuring", kind]
        return measuring / (measuring + self.counts["training", kind])


@pytest.mark.slow
def test_measuring_is_a_small_part_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, data = random.Random(0), tmp_path / "rows.jsonl"
    with data.open("w") as file:
        for _ in range(NUM_ROWS):
            texts = {name: " ".join(rng.choices(WORDS, k=NUM_WORDS)) for name in ("prompt", "chosen", "rejected")}
            file.write(json.dumps(texts) + "\n")
    work = WorkCounter(monkeypatch)
    command = ["train", "--model", CHECKPOINT, "--data", data, "--adapter-path", tmp_path / "run", "--no-supervise"]
    result = CliRunner().invoke(app, [*map(str, command), "--quiet"])
    assert result.exit_code == 0, result.output
    evaluations = (tmp_path / "run" / "report" / "evaluations.jsonl").read_text().splitlines()
    assert len(evaluations) == 3 and work.counts["training", "tokens"] and work.counts["measuring", "head"]
    shares = {kind: work.measuring_share(kind) for kind in ("tokens", "head")}
    print(shares, dict(work.counts))
    assert max(shares.values()) <= 0.1
