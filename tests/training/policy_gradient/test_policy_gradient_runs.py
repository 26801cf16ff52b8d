"""PPO and RLOO runs: the same bytes after any interruption, the gradient, what is recorded, and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo import Listener, TrainConfig, UserError, evaluate, train
from mlx_dpo.adapters.value_head import VALUE_HEAD_FILE, read_value_head
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.network import Network
from mlx_dpo.judges.judge import Answer, Comparison, Judge
from mlx_dpo.objectives import LOSS_FUNCTIONS
from mlx_dpo.objectives.sampled_tokens import SampledTokens
from mlx_dpo.reporting.html_report import write_report
from mlx_dpo.reporting.metrics_log import MetricsLog, read_metrics
from mlx_dpo.training.components import TrainInputs, build_components
from mlx_dpo.training.policy_gradient.trajectory import Trajectory, padded
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.run_planner import estimate_run
from mlx_dpo.training.trainer import Trainer
from tests.conftest import PAIRS, rows_of
from tests.marks import mostly_slow
from tests.training.on_policy.runs import (
    PROMPTS,
    CodePointJudge,
    on_policy_config,
    outcome,
    read_rollouts,
    train_on_policy,
)
from tests.training.on_policy.test_on_policy_runs import KillAt
from tests.training.test_plug_points import Killed

KINDS: dict[str, dict[str, Any]] = {
    "ppo, adapted": {"loss": "ppo", "num_ppo_epochs": 2, "num_mini_batches": 2, "kl_target": 0.5, "kl_horizon": 20},
    "rloo": {"loss": "rloo", "rloo_k": 3, "num_ppo_epochs": 2, "batch_size": 2},
    "whitened": {"loss": "ppo", "num_ppo_epochs": 3, "whiten_rewards": True, "temperature": 0.7},
}


class KillAtStep(Listener):
    """Ends the run in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        if step == self.at:
            raise Killed


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 2))
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path, kind: str) -> None:
    """Killed while samples are half used, and again at the first step that uses new ones."""
    whole, cut, settings = tmp_path / "whole", tmp_path / "cut", {**KINDS[kind], "iters": 6, "save_every": 1}
    train_on_policy(whole, **settings)
    with pytest.raises(Killed):
        train_on_policy(cut, KillAtStep(4), **settings)
    with pytest.raises(Killed):
        train_on_policy(cut, KillAt(5 if kind != "whitened" else 4), **settings)
    train_on_policy(cut, **settings)
    assert outcome(cut) == outcome(whole)
    steps = 4 if kind == "ppo, adapted" else settings["num_ppo_epochs"]
    assert sorted({line["step"] for line in read_rollouts(whole)}) == list(range(1, 7, steps))
    if settings["loss"] == "ppo":
        files = [(run / VALUE_HEAD_FILE).read_bytes() for run in (cut, whole)]
        assert files[0] == files[1] and np.abs(np.array(read_value_head(whole)["value_head.weight"])).max() > 0
    else:
        assert not (whole / VALUE_HEAD_FILE).exists()


def make_trainer(run: Path, **settings: Any) -> Trainer:
    config = on_policy_config(run, **settings)
    inputs = TrainInputs(config, None, None, None, None, Listener(), prompts=PROMPTS, judge=CodePointJudge())
    return build_components(inputs).make_trainer(RunFolder(run), Listener())


def plain_tokens(model: nn.Module, head: Any, sequences: Sequence[Any], width: int) -> tuple[mx.array, mx.array]:
    """[completions, tokens] log-probs and values by the model's own call, one completion at a time."""
    logps, values = [], []
    for prompt, completion in sequences:
        inputs, start = mx.array([[*prompt, *completion]])[:, :-1], len(prompt) - 1
        hidden = model.model(inputs)[0, start:]
        log_p = nn.log_softmax(model.model.embed_tokens.as_linear(hidden), axis=-1)
        padding = mx.zeros(width - len(completion))
        logps.append(mx.concatenate([mx.take_along_axis(log_p, mx.array(completion)[:, None], 1)[:, 0], padding]))
        values.append(mx.concatenate([head(hidden)[:, 0], padding]))
    return mx.stack(logps), mx.stack(values)


@pytest.mark.parametrize("loss", ["ppo", "rloo"])
def test_the_gradient_is_that_of_automatic_differentiation(tmp_path: Path, loss: str) -> None:
    """Of the mean loss of an optimizer batch with ratios other than 1, for adapter and head."""
    trainer = make_trainer(tmp_path, loss=loss, batch_size=4, temperature=1.0, micro_batch_tokens=64)
    model, source = trainer.model, trainer.source
    model.train()
    examples = source.batch(0)
    assert examples is not None
    tensors, random = dict(tree_flatten(model.trainable_parameters())), np.random.default_rng(0)
    for name, tensor in tensors.items():  # the policy has moved since it sampled
        noise = random.normal(0, 0.3 if name == "value_head.weight" else 0.02, tensor.shape)
        tensors[name] = tensor + mx.array(noise.astype(np.float32))
    model.update(tree_unflatten(list(tensors.items())))
    batch = trainer.scorer.make_batch(examples, trainer.communicator)
    assert len(batch.micro_batches) > 1
    gradients, metrics, _ = trainer.gradients.compute(batch, 0, {})
    encoded = [example.encoded for example in examples]
    trajectories = [item.example for item in encoded]
    lengths = [len(item.completions[0]) for item in encoded]
    head = model.value_head if loss == "ppo" else lambda hidden: hidden[:, :1] * 0
    function, width = LOSS_FUNCTIONS[loss].function, max(lengths)

    def mean_loss() -> mx.array:
        logps, values = plain_tokens(model, head, [(item.prompt, item.completions[0]) for item in encoded], width)
        columns = {
            name: padded([getattr(item, name) for item in trajectories])
            for name in ("old_logps", "old_values", "advantages", "returns")
        }
        mask = padded([np.ones(length) for length in lengths])
        return function(SampledTokens(logps, values, mask=mask, mean_tokens=np.mean(lengths), **columns)).mean()

    value, expected = nn.value_and_grad(model, mean_loss)()
    assert all(isinstance(item, Trajectory) for item in trajectories)
    assert metrics[:, 0].mean() == pytest.approx(value.item(), rel=1e-5, abs=1e-6)
    assert abs(metrics[:, trainer.loss.metric_names.index("val/ratio")].mean() - 1) > 1e-3
    by_name = dict(tree_flatten(gradients))
    for name, gradient in tree_flatten(expected):
        np.testing.assert_allclose(np.array(by_name[name]), np.array(gradient), rtol=1e-3, atol=2e-6, err_msg=name)


def test_log_probs_are_those_of_the_sampling_temperature(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss="ppo", temperature=0.5)
    network: Network = trainer.scorer.network  # type: ignore[attr-defined]
    batch = MicroBatch((0,), (((5, 6, 7), (8, 9)),))
    logits = trainer.model(mx.array([[5, 6, 7, 8]]))[0, 2:] / 0.5
    expected = mx.take_along_axis(nn.log_softmax(logits, axis=-1), mx.array([[8], [9]]), 1)[:, 0]
    np.testing.assert_allclose(network.logps(batch).token_logps, np.array(expected), rtol=1e-5)


def test_the_first_ratio_is_one_and_rollouts_are_used_in_every_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss="ppo", num_ppo_epochs=2, num_mini_batches=2, batch_size=3)
    used = []
    for step in range(4):
        examples = trainer.source.batch(step)
        assert examples is not None and len(examples) == 3
        batch = trainer.scorer.make_batch(examples, trainer.communicator)
        metrics = trainer.gradients.compute(batch, step, {})[1].mean(axis=0)
        assert metrics[trainer.loss.metric_names.index("val/ratio")] == pytest.approx(1, abs=1e-5)
        used += [item.encoded.prompt for item in examples]
        trainer.source.after_step(step + 1)
    assert sorted(used[:6]) == sorted(used[6:]) and used[:6] != used[6:] and len(set(used)) == 6


def test_what_is_recorded(tmp_path: Path) -> None:
    train_on_policy(tmp_path, MetricsLog(), loss="ppo", iters=4, kl_coef=0.3, steps_per_report=4)
    (report,), lines = read_metrics(tmp_path), read_rollouts(tmp_path)
    assert len(lines) == 3 and {line["step"] for line in lines} == {1}
    kls = [line["kls"][0] * line["tokens"][0] for line in lines]
    scores = [line["scores"][0] for line in lines]
    assert report["objective/kl"] == pytest.approx(np.mean(kls), rel=1e-4)
    assert report["objective/scores"] == report["rollouts/reward"] == pytest.approx(np.mean(scores))
    assert report["objective/rlhf_reward"] == pytest.approx(np.mean(scores) - 0.3 * np.mean(kls), rel=1e-4)
    assert report["objective/kl_coef"] == 0.3 and report["rollouts/empty_steps"] == 0
    assert {"loss", "loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg", "val/ratio"} <= report.keys()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for title in ("Score less KL penalty", "KL to the reference", "Policy loss", "Value loss", "Clipped ratios"):
        assert title in page


class Unscoring(CodePointJudge):
    """Has no score for some answers, or for any."""

    def __init__(self, answers_all: bool) -> None:
        super().__init__()
        self.answers_all = answers_all

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        scores: list[float | None] = [*super().scores(answers)]
        return [None if i % 2 or not self.answers_all else score for i, score in enumerate(scores)]


def test_answers_without_a_score_are_left_out(tmp_path: Path) -> None:
    train_on_policy(tmp_path / "some", MetricsLog(), judge=Unscoring(True), loss="ppo", iters=2, steps_per_report=1)
    assert "loss" in read_metrics(tmp_path / "some")[0]
    train_on_policy(tmp_path / "none", MetricsLog(), judge=Unscoring(False), loss="ppo", iters=2, steps_per_report=1)
    reports = read_metrics(tmp_path / "none")
    assert "loss" not in reports[0] and reports[0]["rollouts/empty_steps"] == 1


def test_training_is_continued_with_the_value_head_of_the_adapter(tmp_path: Path) -> None:
    train_on_policy(tmp_path / "first", loss="ppo", iters=1)
    adapter = str(tmp_path / "first")
    trainer = make_trainer(tmp_path / "second", loss="ppo", init_adapter=adapter, reference="initial")
    weight = read_value_head(adapter)["value_head.weight"]
    assert np.array_equal(np.array(trainer.model.value_head.weight), np.array(weight)) and np.any(np.array(weight))


class Comparing(Judge):
    name = "comparing"

    def __repr__(self) -> str:  # of the test's id, which has to be the same in all of pytest-xdist's processes
        return self.name

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        return [1.0] * len(comparisons)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"loss": "ppo", "num_completions": 3}, "num_completions"),
        ({"loss": "ppo", "rollout_batches": 2}, "rollout_batches"),
        ({"loss": "rloo", "top_p": 0.9}, "top_p"),
        ({"loss": "ppo", "valid_data": str(PAIRS)}, "valid_data"),
        ({"loss": "ppo", "rloo_k": 2}, "rloo_k"),
        ({"loss": "rloo", "vf_coef": 0.2}, "vf_coef"),
        ({"loss": "ppo", "beta": 0.3}, "beta"),
        ({"loss": "ppo", "kl_horizon": 5}, "kl_horizon"),
        ({"loss": "ppo", "reference": "none"}, "kl_coef"),
        ({"loss": "ppo=1,sft=0.1"}, "loss"),
        ({"loss": "sigmoid", "num_ppo_epochs": 2}, "num_ppo_epochs"),
        ({"loss": "sigmoid", "kl_coef": 0.2}, "kl_coef"),
        ({"loss": "ppo", "judge": Comparing()}, "judge"),
        ({"loss": "ppo", "reward_model": "adapter"}, "reward_model"),
        ({"loss": "ppo", "fine_tune_type": "full", "init_adapter": None, "reference": "initial"}, "fine_tune_type"),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as raised:
        train_on_policy(tmp_path / "run", **settings)
    assert raised.value.field == field and not (tmp_path / "run").exists()


def test_a_reward_model_must_be_one(tmp_path: Path) -> None:
    config = on_policy_config(tmp_path / "run", loss="ppo", reward_model=str(PAIRS.parent / "adapter"))
    with pytest.raises(UserError, match="not a reward model"):
        train(replace(config, on_policy=False), prompts=PROMPTS)


def test_they_are_no_measure_of_preferences() -> None:
    with pytest.raises(UserError, match="not made of preferences"):
        evaluate(TrainConfig(loss="ppo"), rows=rows_of(PAIRS))


@pytest.mark.parametrize("loss", ["ppo", "rloo"])
def test_a_plan_counts_every_completion(tmp_path: Path, loss: str) -> None:
    plan = estimate_run(on_policy_config(tmp_path, loss=loss, max_tokens=30), prompts=PROMPTS, judge=CodePointJudge())
    assert plan.completion_tokens == (30, 30) and plan.memory["sampling"] > 0 and plan.seconds["training"] > 0
