"""Reward models: their gradient the plain way, TRL's numbers, what is saved, and what uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import Listener, RewardModel, TrainConfig, UserError, best_of_n, evaluate, train
from mlx_dpo.adapters.adapter_folder import REWARD_HEAD_FILE, load_adapter
from mlx_dpo.adapters.reward_head import read_reward_head, read_trained_tensors
from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import Where
from mlx_dpo.forward.model_loading import load_tokenizer
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.reward_network import load_reward_network
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.events import Metrics
from tests import plain
from tests.conftest import CHECKPOINT, PAIRS, TRL, rows_of, write_rows
from tests.marks import mostly_slow

REFERENCE = json.loads((TRL / "reward_reference.json").read_text())
NAMES = {  # ours by TRL's
    "loss": "loss",
    "grad_norm": "grad_norm",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "mean_reward": "mean_reward",
    "min_reward": "min_reward",
    "max_reward": "max_reward",
}


class Killed(Exception):
    """The process is gone."""


class KillAfter(Listener):
    """Ends the run after a step, without saving it."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, step: int, metrics: Metrics) -> None:
        if step == self.at:
            raise Killed


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter and the head that TRL's runs start from."""
    folder = Path(shutil.copytree(TRL / "adapter", tmp_path_factory.mktemp("start") / "adapter"))
    shutil.copy(TRL / REWARD_HEAD_FILE, folder)
    return folder


def config(run: Path, **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "model": str(CHECKPOINT),
        "data": str(PAIRS),
        "adapter_path": str(run),
        "loss": "reward",
        "valid_pairs": 0,
        "batch_size": 8,
        "iters": 7,
        "learning_rate": 1e-3,
        "lr_schedule": "constant",
        "warmup": 0,
        "steps_per_report": 1,
    }
    return TrainConfig.from_mapping(defaults | settings)


def files(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("adapters.safetensors", REWARD_HEAD_FILE)]


def rows_of_run(name: str) -> list[dict[str, Any]]:
    rows = rows_of(PAIRS if name == "chat" else TRL / "raw_pairs.jsonl")
    margins = REFERENCE["margins"] if name == "margins" else [None] * len(rows)
    return [{**row, **({} if m is None else {"margin": m})} for row, m in zip(rows, margins, strict=True)]


# Splitting the batch is a test of its own.
@pytest.mark.parametrize("memory_limit", ["4GB", pytest.param("1MB", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", REFERENCE["runs"])
def test_twelve_steps_of_trl(tmp_path: Path, start: Path, name: str, memory_limit: str) -> None:
    options = REFERENCE["runs"][name]["options"]
    settings = {"data": str(write_rows(tmp_path / "pairs.jsonl", rows_of_run(name))), "raw": name != "chat"}
    settings |= {key: value for key, value in options.items() if key == "center_rewards_coefficient"}
    run = tmp_path / "run"
    train(config(run, iters=12, memory_limit=memory_limit, init_adapter=str(start), **settings), listener=MetricsLog())
    ours, theirs = read_metrics(run), REFERENCE["runs"][name]["steps"]
    assert len(ours) == len(theirs) == 12
    for step, (mine, trl) in enumerate(zip(ours, theirs, strict=True), 1):
        for other, metric in NAMES.items():
            assert mine[metric] == pytest.approx(trl[other], rel=2e-4, abs=2e-5), (step, metric)
    np.testing.assert_allclose(np.array(read_reward_head(run)), REFERENCE["runs"][name]["final_head"], atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "chat"])
def test_tokens_and_rewards_are_trls(start: Path, name: str) -> None:
    theirs = REFERENCE["runs"][name]
    encoder = ExampleEncoder(load_tokenizer(str(CHECKPOINT)), max_length=1024, overlong="error", raw=name != "chat")
    model = RewardModel(load_reward_network(mlx_lm.load(str(CHECKPOINT))[0], str(start)), encoder)
    rows = rows_of_run(name)
    by_role = [[{"prompt": row["prompt"], "completion": row[role]} for row in rows] for role in ("chosen", "rejected")]
    for column, answers in zip(("chosen_ids", "rejected_ids"), by_role, strict=True):
        for row, pair in zip(answers, theirs["pairs"], strict=True):
            encoded = encoder(parse_examples(row, Where("rows"))[0])
            assert encoded is not None and [*encoded.prompt, *encoded.completions[0]] == pair[column]
    np.testing.assert_allclose(model.rewards([*by_role[0], *by_role[1]]), theirs["steps"][0]["rewards"], atol=2e-6)


def plain_rewards(model: nn.Module, pairs: list[tuple[list[int], list[int]]]) -> mx.array:
    """The head on the hidden state at the last token, of whole sequences one by one."""
    hidden = [model.model(mx.array([prompt + completion]))[0, -1] for prompt, completion in pairs]
    return (mx.stack(hidden) @ model.head.weight.T)[:, 0]


def test_the_gradient_is_that_of_the_plain_model(tmp_path: Path, start: Path) -> None:
    """One step of gradient descent at rate 1: what changes is the gradient of mlx's own differentiation."""
    run, rows = tmp_path / "run", rows_of(PAIRS)
    settings = {"init_adapter": str(start), "optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0, "iters": 1}
    train(config(run, center_rewards_coefficient=0.1, **settings), listener=MetricsLog())
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))
    load_adapter(model, start, allow_reward_model=True)
    model.head = nn.Linear(1, 1, bias=False)
    model.head.weight = read_reward_head(start)
    sequences = [
        [plain.completion_ids(tokenizer, row["prompt"], row[name]) for row in rows] for name in ("chosen", "rejected")
    ]

    def loss() -> mx.array:
        chosen, rejected = (plain_rewards(model, pairs) for pairs in sequences)
        return (mx.logaddexp(0, rejected - chosen) + 0.1 * (chosen + rejected) ** 2).mean()

    value, gradients = nn.value_and_grad(model, loss)()
    assert read_metrics(run)[0]["loss"] == pytest.approx(value.item(), rel=1e-5)
    before, after = read_trained_tensors(start), read_trained_tensors(run)
    expected = {name.replace("head.", "reward_head."): np.array(array) for name, array in tree_flatten(gradients)}
    assert expected.keys() == after.keys()
    for name in after:
        change = np.array(before[name]).astype(np.float64) - np.array(after[name])
        assert np.abs(change - expected[name]).max() <= 1e-5 * max(1.0, np.abs(expected[name]).max()), name


def test_a_step_is_the_same_however_the_batch_is_cut(tmp_path: Path, start: Path) -> None:
    settings = {"init_adapter": str(start), "optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0, "iters": 1}
    for name, limit in (("whole", "4GB"), ("cut", "1MB")):
        train(config(tmp_path / name, memory_limit=limit, **settings), listener=MetricsLog())
    whole, cut = (read_trained_tensors(tmp_path / name) for name in ("whole", "cut"))
    for name, tensor in whole.items():
        np.testing.assert_allclose(np.array(cut[name]), np.array(tensor), atol=2e-6)
    assert not np.allclose(np.array(whole["reward_head.weight"]), np.array(read_reward_head(start)), atol=1e-3)


@pytest.mark.parametrize(
    "settings", mostly_slow([{"dropout": 0.2}, {}, {"fine_tune_type": "dora"}, {"fine_tune_type": "full"}], 4), ids=str
)
def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Adapter and head, to the byte; the folder then holds what was measured."""
    settings = {"batch_size": 3, "save_every": 2, "valid_data": str(PAIRS), "learning_rate": 3e-3, **settings}
    train(config(tmp_path / "whole", **settings), listener=MetricsLog())
    with pytest.raises(Killed):
        train(config(tmp_path / "cut", **settings), listener=KillAfter(5))
    train(config(tmp_path / "cut", **settings))
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    metrics = read_metrics(tmp_path / "whole")
    assert metrics[-1]["eval_loss"] < metrics[0]["eval_loss"]
    model = RewardModel.load(tmp_path / "whole")
    chosen, rejected = (
        model.rewards([{"prompt": row["prompt"], "completion": row[name]} for row in rows_of(PAIRS)])
        for name in ("chosen", "rejected")
    )
    assert chosen.mean() == pytest.approx(metrics[-1]["eval_rewards/chosen"], abs=1e-5)
    assert (chosen - rejected).mean() == pytest.approx(metrics[-1]["eval_rewards/margins"], abs=1e-5)
    assert min(chosen.min(), rejected.min()) == pytest.approx(metrics[-1]["eval_min_reward"], abs=1e-5)


def test_neither_vocabulary_nor_reference_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def refused(*_: Any) -> Any:
        raise AssertionError("it was run")

    monkeypatch.setattr("mlx_dpo.evaluation.reference_setup.CachedReference", refused)
    from_model = Network.from_model

    def then_refuse(*arguments: Any, **options: Any) -> Network:
        network = from_model(*arguments, **options)
        monkeypatch.setattr("mlx_dpo.forward.head.HeadSplit.logits", refused)
        return network

    monkeypatch.setattr("mlx_dpo.forward.policy.Network.from_model", then_refuse)
    monkeypatch.setattr("mlx_dpo.forward.policy.fingerprint", lambda network: "")
    train(config(run, iters=2, valid_data=str(PAIRS)), listener=MetricsLog())
    assert not any("logps" in name or name == "kl" for line in read_metrics(run) for name in line)
    assert not any(name.endswith("logps/chosen") for name in read_metrics(run)[0])


def test_the_head_starts_as_transformers_draws_it(tmp_path: Path) -> None:
    heads = []
    for seed in (0, 0, 1):
        train(config(tmp_path / f"{len(heads)}", iters=1, seed=seed, learning_rate=0.0))
        heads.append(np.array(read_reward_head(tmp_path / f"{len(heads)}")))
    assert heads[0].shape == (1, 32) and heads[0].std() == pytest.approx(0.02, rel=0.5)
    np.testing.assert_array_equal(heads[0], heads[1])
    assert not np.allclose(heads[0], heads[2])


def test_an_adapter_without_a_head_gets_a_new_one(tmp_path: Path, start: Path) -> None:
    train(config(tmp_path / "run", init_adapter=str(TRL / "adapter"), iters=1, learning_rate=0.0))
    assert not np.allclose(np.array(read_reward_head(tmp_path / "run")), np.array(read_reward_head(start)))
    with pytest.raises(UserError, match="reward model") as caught:
        train(config(tmp_path / "policy", loss="sigmoid", init_adapter=str(start)))
    assert caught.value.field == "init_adapter"


def test_evaluate_and_best_of_n(tmp_path: Path) -> None:
    run, rows = tmp_path / "run", rows_of(PAIRS)
    train(config(run, iters=20, learning_rate=3e-3, valid_data=str(PAIRS)), listener=MetricsLog())
    measured = evaluate(TrainConfig(model=str(CHECKPOINT), data=str(PAIRS)), adapter_path=run)
    last = read_metrics(run)[-1]
    assert measured["rewards/accuracies"] == 1 and measured["pairs"] == 8
    for name in ("loss", "rewards/margins", "mean_reward", "min_reward", "max_reward"):
        assert measured[name] == pytest.approx(last[f"eval_{name}"], abs=1e-5), name
    model, tokenizer = mlx_lm.load(str(CHECKPOINT))
    in_memory = config(tmp_path / "memory", iters=3, valid_data=str(PAIRS))
    after = train(in_memory, model=model, tokenizer=tokenizer).after
    again = evaluate(in_memory, model=model, tokenizer=tokenizer, rows=rows)
    assert again.pop("pairs") == 8 and again == pytest.approx(after, abs=1e-6)
    prompts, candidates = [row["prompt"] for row in rows], [[row["rejected"], row["chosen"]] for row in rows]
    reward_model = RewardModel.load(run)
    assert best_of_n(reward_model, prompts, candidates) == [1] * 8
    assert best_of_n(reward_model, prompts[:2], [[" "], ["", *candidates[1]]]) == [None, 2]
    with pytest.raises(UserError, match="not a reward model"):
        RewardModel.load(TRL / "adapter", model=str(CHECKPOINT))


def test_a_head_of_another_model_is_refused(tmp_path: Path, start: Path) -> None:
    folder = Path(shutil.copytree(start, tmp_path / "adapter"))
    mx.save_safetensors(str(folder / REWARD_HEAD_FILE), {"reward_head.weight": mx.zeros((1, 7))})
    with pytest.raises(UserError, match="takes 7 numbers, and this model has 32"):
        RewardModel.load(folder, model=str(CHECKPOINT))
    (folder / REWARD_HEAD_FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        RewardModel.load(folder, model=str(CHECKPOINT))
