"""The frontier of reward and KL: its closed form, equal KL, and which runs are made again."""

from __future__ import annotations

import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import load

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bundled_task
import frontier
import frontier_curves as curves
import frontier_runs
import temperature_and_shift

import mlx_dpo
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.config import TrainConfig
from mlx_dpo.objectives.custom_loss import load_custom_loss
from mlx_dpo.objectives.loss_inputs import example_pairs

BASE = 0.4


def test_the_optimum_is_the_tilted_base_policy() -> None:
    for beta in (0.1, 0.5, 2.0):
        good, bad = BASE * np.exp(1 / beta), 1 - BASE
        policy = np.array([good, bad]) / (good + bad)
        kl = float((policy * np.log(policy / [BASE, 1 - BASE])).sum())
        assert curves.binary_kl(policy[0], BASE) == pytest.approx(kl)
    assert curves.binary_kl(BASE, BASE) == pytest.approx(0)
    kl, reward = curves.optimal_curve(BASE)[-1]
    assert (kl, reward) == (pytest.approx(np.log(1 / BASE)), 1)


def test_best_of_n_uses_each_answer_once() -> None:
    rewards = np.array([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    means = {n: of.tolist() for n, of in curves.best_of_n_rewards(rewards).items()}
    assert means == {1: [0.2, 0.2], 2: [0.5, 0], 4: [1, 0]}


def test_best_of_n_of_independent_answers_is_on_the_closed_form() -> None:
    rewards = (np.random.default_rng(0).random((4000, 16)) < BASE).astype(float)
    for n, of in curves.best_of_n_rewards(rewards).items():
        assert of.mean() == pytest.approx(1 - (1 - BASE) ** n, abs=0.02)


def test_rewards_between_points_are_linear_in_the_root_of_the_kl() -> None:
    run = [(0.0, 0.4), (0.36, 1.0), (0.16, 0.8), (2.0, 0.1)]
    assert [curves.reward_at(run, kl) for kl in (0, 0.04, 0.25, 0.36)] == pytest.approx([0.4, 0.6, 0.9, 1.0])
    assert curves.reward_at(run, 2.1) is None
    assert curves.reward_at(run, 1.0) is None  # nothing was measured near it


def point(method: str, seed: int, kl: float, reward: float, **settings: float) -> dict[str, object]:
    return {"method": method, "seed": seed, "step": 8, "kl": kl, "reward": reward, **settings}


def test_methods_at_equal_kl() -> None:
    points = [
        point("dpo", 0, 0.4, 0.8, beta=0.1),
        point("dpo", 0, 0.4, 0.6, beta=0.3),
        point("dpo", 0, 0.05, 0.5, beta=1),  # does not reach 0.1
        point("dpo", 1, 0.4, 0.9, beta=0.1),
        point("ppo-true-reward", 0, 0.4, 0.8, kl_coef=0.2),
        point("ppo-true-reward", 1, 0.4, 0.6, kl_coef=0.2),
    ]
    rows = {row["method"]: row["rewards"]["0.1"] for row in curves.equal_kl_rows(points, BASE, [0.1])}
    assert rows["dpo"]["mean"] == pytest.approx((0.55 + 0.65) / 2) and rows["dpo"]["seeds"] == 2  # half way from BASE
    assert rows["dpo - ppo-true-reward"]["mean"] == pytest.approx((0.55 - 0.6 + 0.65 - 0.5) / 2)
    low, high = rows["dpo - ppo-true-reward"]["interval"]
    assert low < -0.05 < 0.15 < high and (low + high) / 2 == pytest.approx(0.05)
    assert rows["dpo - ppo"] is None
    assert curves.binary_kl(rows["optimum"]["mean"], BASE) == pytest.approx(0.1, abs=1e-4)


def test_only_missing_runs_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other, *_ = frontier_runs.runs_of_seed(0, quick=True)
    file = tmp_path / "runs" / run.name / "points.json"
    file.parent.mkdir(parents=True)
    points = [point(run.method, 0, 0.1, 0.5)]
    file.write_text(json.dumps({"made_by": frontier_runs.made_by(run), "points": points}))
    assert frontier_runs.finished_points(tmp_path, run) == points
    faster = dataclasses.replace(run, config={**run.config, "learning_rate": 1e-3})
    assert frontier_runs.finished_points(tmp_path, faster) is None
    made = []

    def start(folder: Path, run: frontier_runs.Run) -> subprocess.Popen[bytes]:
        made.append(run.name)
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(frontier, "start", start)
    frontier.make_runs(tmp_path, [run, other])
    assert made == [other.name]


def test_runs_have_names_of_their_own() -> None:
    first, others = frontier_runs.all_runs(3, quick=False)
    names = [run.name for run in [*first, *others]]
    assert {run.name for run in frontier_runs.runs_of_seed(2, quick=True)} < set(
        names
    )  # so a full one resumes a quick one
    assert len(set(names)) == len(names)
    methods = {"dpo", "ipo", "kto", "sft", "unlikelihood", "ppo", "ppo-true-reward", "best-of-n"}
    assert {run.method for run in others} == methods
    assert {run.method for run in frontier_runs.runs_of_seed(0, quick=True)} == methods


def test_the_kl_of_answers_is_that_of_their_distributions(checkpoint: Path) -> None:
    model = load(str(checkpoint))[0]
    name = next(name for name, _ in tree_flatten(model.parameters()) if name.endswith("q_proj.weight"))
    base = dict(tree_flatten(model.parameters()))[name]
    model.update(tree_unflatten([(name, base + 0.3 * mx.random.normal(base.shape, key=mx.random.key(0)))]))
    sequences = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 10])]
    kls = bundled_task.answer_kls(model, {name: base}, sequences)

    def log_probs(ids: list[int]) -> np.ndarray:
        logits = np.array(model(mx.array([ids]))[0, -1], np.float64)
        return logits - np.logaddexp.reduce(logits)

    for kl, (prompt, answer) in zip(kls, sequences, strict=True):
        expected = 0.0
        for i in range(len(answer)):
            ids = [*prompt, *answer[:i]]
            policy = log_probs(ids)
            with swap_adapter(model, {name: base}):
                expected += float((np.exp(policy) * (policy - log_probs(ids))).sum())
        assert kl == pytest.approx(expected, rel=1e-3) and kl > 1e-3


def test_unlikelihood() -> None:
    loss = load_custom_loss(f"{frontier_runs.HERE / 'unlikelihood.py'}:unlikelihood")
    pairs = example_pairs()
    losses = np.array(loss.function(pairs, alpha=0.5))
    assert losses == pytest.approx(np.array(0.5 * pairs.rejected_logps - pairs.chosen_logps))


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_questions_are_new_and_of_their_kind(seed: int) -> None:
    trained, subsets = temperature_and_shift.split_rows(seed)
    assert all(map(temperature_and_shift.is_trained_kind, trained)) and len(trained) > 300
    for name, rows in subsets.items():
        held_out = {row["prompt"] for row in rows}
        assert len(held_out) == 128 and not held_out & set(trained)
        assert all(temperature_and_shift.is_trained_kind(question) == (name == "same") for question in held_out)


def test_ppo_has_the_settings_of_the_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs = list[TrainConfig]()
    monkeypatch.setattr(mlx_dpo, "train", lambda config, **_: configs.append(config))
    monkeypatch.setattr(sys, "argv", ["ppo.py", str(tmp_path)])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "ppo.py"))
    (config,) = configs
    assert {name: getattr(config, name) for name in frontier_runs.PPO} == frontier_runs.PPO
