"""Loss, gradient and statistics of one PPO or RLOO step on given completions, against TRL's trainers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dpo import Listener, TrainConfig
from mlx_dpo.data.encoded_example import TokenIds
from mlx_dpo.data.examples import Prompt
from mlx_dpo.judges.judge import Answer, ScalarJudge
from mlx_dpo.training.components import TrainInputs, build_components
from mlx_dpo.training.on_policy.rollout import Rollout, RolloutCompletion
from mlx_dpo.training.policy_gradient.trajectory_source import TrajectorySource
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.trainer import Trainer
from tests.conftest import CHECKPOINT, TRL

REFERENCE = json.loads((TRL / "policy_gradient_reference.json").read_text(encoding="utf-8"))
PPO_RUNS = ["ppo", "ppo, other settings"]
STATISTICS = ["policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg"]


class GivenScores(ScalarJudge):
    """Completions are called "ROW COMPLETION"; their scores are given."""

    name = "given scores"

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        places = [tuple(map(int, answer.completion.split())) for answer in answers]
        return [REFERENCE["scores"][completion][row] for row, completion in places]


class GivenSampler:
    """Completions are given."""

    def __init__(self, source: TrajectorySource, answers: Sequence[Sequence[Sequence[int]]]) -> None:
        self.source, self.answers = source, answers

    def sample(self, positions: Sequence[int], prompts: Sequence[TokenIds]) -> list[tuple[RolloutCompletion, ...]]:
        rows = [self.source.prompts.index(position) for position in positions]
        assert [list(prompt) for prompt in prompts] == [REFERENCE["prompts"][row] for row in rows]
        return [
            tuple(
                RolloutCompletion(tuple(answers[row]), f"{row} {number}", "stop", 0.0)
                for number, answers in enumerate(self.answers)
            )
            for row in rows
        ]


def make_trainer(folder: Path, answers: Sequence[Sequence[Sequence[int]]], **settings: Any) -> Trainer:
    config = TrainConfig(
        model=str(CHECKPOINT),
        init_adapter=str(TRL / "adapter"),
        reference="base",
        batch_size=len(REFERENCE["prompts"]),
        max_tokens=64,
        **settings,
    )
    prompts = [Prompt(row["prompt"]) for row in REFERENCE["rows"]]
    inputs = TrainInputs(config, None, None, None, None, Listener(), prompts=prompts, judge=GivenScores())
    trainer = build_components(inputs).make_trainer(RunFolder(folder), Listener())
    assert isinstance(trainer.source, TrajectorySource)
    trainer.source.sampler = GivenSampler(trainer.source, answers)  # type: ignore[assignment]
    return trainer


def with_old_values(source: TrajectorySource, change: Any) -> None:
    """Have the policy that sampled differ from the present one, as TRL was given it."""
    measure = source._with_logps
    source._with_logps = lambda rollouts: [  # type: ignore[method-assign]
        replace(item, completions=tuple(change(item, i, c) for i, c in enumerate(item.completions)))
        for item in measure(rollouts)
    ]


def step(trainer: Trainer) -> tuple[dict[str, mx.array], dict[str, float]]:
    """The gradient by parameter, and the metrics."""
    trainer.model.train()
    examples = trainer.source.batch(0)
    assert examples is not None
    batch = trainer.scorer.make_batch(examples, trainer.communicator)
    gradients, metrics, _ = trainer.gradients.compute(batch, 0, {})
    return dict(tree_flatten(gradients)), dict(zip(trainer.loss.metric_names, metrics.mean(axis=0), strict=True))


def assert_gradients(gradients: dict[str, mx.array], expected: dict[str, Any]) -> None:
    norm = np.sqrt(sum(float(mx.square(gradient).sum()) for gradient in gradients.values()))
    assert norm == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert gradients.keys() == expected["gradients"].keys()
    for name, values in expected["gradients"].items():
        np.testing.assert_allclose(np.array(gradients[name]).reshape(-1)[:4], values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("micro_batch_tokens", [64, 4096])
@pytest.mark.parametrize("name", PPO_RUNS)
def test_ppo_is_that_of_trl(tmp_path: Path, name: str, micro_batch_tokens: int) -> None:
    expected = REFERENCE["runs"][name]
    options = {"micro_batch_tokens": micro_batch_tokens, **expected["options"]}
    trainer = make_trainer(tmp_path, [REFERENCE["ppo_answers"]], loss="ppo", **options)
    source = trainer.source
    assert isinstance(source, TrajectorySource)
    trainer.model.value_head.weight = mx.array([REFERENCE["head"]])

    def change(rollout: Rollout, number: int, completion: RolloutCompletion) -> RolloutCompletion:
        values = tuple(expected["old_values"][rollout.prompt])
        return replace(completion, token_logps=tuple(expected["old_logps"][rollout.prompt]), token_values=values)

    with_old_values(source, change)
    gradients, metrics = step(trainer)
    for rollout, (trajectory,) in zip(
        source._next_state.rollouts, source._trajectories(source._next_state), strict=True
    ):
        assert trajectory is not None
        for values, key in (
            (trajectory.advantages, "advantages"),
            (trajectory.returns - trajectory.old_values, "raw_advantages"),
        ):
            np.testing.assert_allclose(values, expected[key][rollout.prompt], rtol=1e-4, atol=1e-5)
    del gradients["value_head.bias"]
    head = np.array(gradients.pop("value_head.weight"))[0]
    np.testing.assert_allclose(head, expected["head_gradient"], rtol=1e-3, atol=1e-6)
    assert_gradients(gradients, expected)
    stats = expected["stats"]
    for metric in STATISTICS:
        assert metrics[metric] == pytest.approx(stats[metric], rel=1e-4, abs=1e-5), metric
    assert metrics["loss"] == pytest.approx(
        stats["loss/policy_avg"] + expected["options"].get("vf_coef", 0.1) * stats["loss/value_avg"], rel=1e-4, abs=1e-5
    )
    source.after_step(1)
    report = source.report_metrics()
    for metric in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores"):
        assert report[f"objective/{metric}"] == pytest.approx(stats[f"objective/{metric}"], rel=1e-4, abs=1e-4), metric


def test_rloo_is_that_of_trl(tmp_path: Path) -> None:
    expected = REFERENCE["runs"]["rloo"]
    options = expected["options"]
    settings = {"kl_coef": options["beta"], "cliprange": options["epsilon"], "rloo_k": 2, "temperature": 1.0}
    trainer = make_trainer(tmp_path, [REFERENCE["first"], REFERENCE["second"]], loss="rloo", **settings)
    source = trainer.source
    assert isinstance(source, TrajectorySource)
    examples = source.batch(0)
    assert examples is not None
    trajectories = {item.encoded.example.completion: item.encoded.example for item in examples}  # type: ignore[union-attr]
    for i in range(len(REFERENCE["prompts"])):
        for j in range(2):
            advantages = trajectories[f"{i} {j}"].advantages  # type: ignore[union-attr]
            np.testing.assert_allclose(advantages, expected["advantages"][2 * i + j], rtol=1e-4, atol=1e-4)

    def change(rollout: Rollout, number: int, completion: RolloutCompletion) -> RolloutCompletion:
        """TRL's advantages are those of the unchanged log-probs, so the reference's are changed with them."""
        shift = expected["shifts"][rollout.prompt][number] / len(completion.token_ids)
        return replace(
            completion,
            token_logps=tuple(logp + shift for logp in completion.token_logps),
            reference_token_logps=tuple(logp + shift for logp in completion.reference_token_logps),
        )

    with_old_values(source, change)
    gradients, metrics = step(trainer)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4, abs=1e-5)
    assert metrics["policy/clipfrac_avg"] == pytest.approx(expected["clip_fraction"]) and expected["clip_fraction"] > 0
    assert_gradients(gradients, expected)
