"""`train --loss reward`, then `train --loss ppo --reward-model` with it, on the bundled model and pairs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from mlx_dpo.adapters.adapter_folder import REWARD_HEAD_FILE, load_adapter
from mlx_dpo.adapters.reward_head import read_reward_head
from mlx_dpo.demo import MODEL, load_pairs
from mlx_dpo.reporting.rollout_log import read_rollouts
from tests import plain
from tests.conftest import TRL, write_rows

Cli = Any


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{row['prompt']}\n" for row in load_pairs("train")[:6]))
    return file


def ppo(prompts: Path, run: Path, *flags: object) -> tuple[object, ...]:
    sizes = ("--batch-size", 3, "--iters", 2, "--num-ppo-epochs", 1, "--max-tokens", 24, "--samples", 0)
    return ("train", "--loss", "ppo", "--model", MODEL, "--prompts", prompts, "--adapter-path", run, *sizes, *flags)


@pytest.fixture
def reward_model(mlx_dpo: Cli, tmp_path: Path) -> Path:
    run, pairs = tmp_path / "reward-model", write_rows(tmp_path / "pairs.jsonl", load_pairs("train")[:8])
    sizes = ("--batch-size", 8, "--iters", 2, "--learning-rate", 1e-3, "--valid-pairs", 0)
    ran = mlx_dpo("train", "--loss", "reward", "--model", MODEL, "--data", pairs, "--adapter-path", run, *sizes)
    assert ran.code == 0, ran.err
    return run


def plain_reward(model: Any, tokenizer: Any, head: mx.array, prompt: str, answer: str) -> float:
    """The head on the hidden state at the last token."""
    ids, completion = plain.completion_ids(tokenizer, prompt, answer)
    return float((model.model(mx.array([ids + completion]))[0, -1] @ head[0]).item())


@pytest.mark.slow
def test_scores_are_those_of_the_reward_model(mlx_dpo: Cli, prompts: Path, reward_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = mlx_dpo(*ppo(prompts, run, "--reward-model", reward_model))
    assert ran.code == 0, ran.err
    model, tokenizer = mlx_lm.load(str(MODEL))
    load_adapter(model, reward_model, allow_reward_model=True)
    head, lines = read_reward_head(reward_model), read_rollouts(run)
    assert [line["step"] for line in lines] == [1] * 3 + [2] * 3
    expected = [plain_reward(model, tokenizer, head, line["prompt"], line["completions"][0]) for line in lines]
    assert [line["scores"][0] for line in lines] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01


@pytest.mark.parametrize(
    ("reward_model", "flags", "words"),
    [
        ("nothing-here", (), "no adapter: there is no such folder"),
        ("prompts.txt", (), "no adapter: this is a file"),
        (TRL / "adapter", (), "not a reward model: there is no reward_head.safetensors"),
        ("with-head", ("--judge-model", MODEL), "this adapter is for another model"),
        ("with-head", ("--judge-model", "nowhere/"), "there is no such folder"),
    ],
)
def test_what_is_no_reward_model_is_refused_before_anything_is_sampled(
    mlx_dpo: Cli, prompts: Path, tmp_path: Path, reward_model: str | Path, flags: tuple[object, ...], words: str
) -> None:
    folder = Path(shutil.copytree(TRL / "adapter", tmp_path / "with-head"))
    shutil.copy(TRL / REWARD_HEAD_FILE, folder)
    ran = mlx_dpo(*ppo(prompts, tmp_path / "run", "--reward-model", tmp_path / reward_model, *flags))
    assert ran.code == 2 and words in ran.err and "Traceback" not in ran.err, ran.err
    assert ("--judge-model" in ran.err) == (words == "this adapter is for another model")
    assert not (tmp_path / "run").exists()
