"""A reward model of the bundled pairs ranks unseen pairs, and the best of eight answers by it is better in truth."""

from __future__ import annotations

from pathlib import Path

import mlx_lm
import numpy as np
import pytest

from mlx_dpo import RewardModel, TrainConfig, best_of_n, evaluate, train
from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.demo import MODEL, PAIRS, load_pairs
from mlx_dpo.demo.grammar import detect_manner, is_fluent
from mlx_dpo.sampling.batched_sampling import sample_completions
from mlx_dpo.sampling.completions import SamplingParams


def true_reward(question: str, answer: str) -> float:
    """1 for a polite and right answer."""
    return float(detect_manner(answer) == "polite" and is_fluent(question, answer))


@pytest.mark.slow
def test_it_ranks_unseen_pairs_and_the_best_of_eight_is_better(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(TrainConfig(model=str(MODEL), data=str(PAIRS), adapter_path=str(run), loss="reward", learning_rate=2e-4))
    measured = evaluate(TrainConfig(model=str(MODEL), data=str(PAIRS)), adapter_path=run)
    assert measured["pairs"] == 128 and measured["rewards/accuracies"] >= 0.97
    model, tokenizer = mlx_lm.load(str(MODEL))
    renderer = ChatRenderer(tokenizer, raw=False, template_kwargs={})
    questions = [str(row["prompt"]) for row in load_pairs("valid")][:48]
    ids = [renderer.prompt_ids(Prompt(question)) for question in questions]
    sampled = sample_completions(model, tokenizer, ids, SamplingParams(64, temperature=1.0), n=8)
    answers = [[completion.text for completion in completions] for completions in sampled]
    best = best_of_n(RewardModel.load(run), questions, answers)
    rewards = np.array(
        [[true_reward(q, a) for a in of_prompt] for q, of_prompt in zip(questions, answers, strict=True)]
    )
    chosen = np.array([row[i] for row, i in zip(rewards, best, strict=True) if i is not None])
    assert len(chosen) == 48 and rewards.mean() < 0.6
    assert chosen.mean() >= 0.95
