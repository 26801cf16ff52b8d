"""Loss and gradient of one on-policy step on given completions and scores, against TRL's trainers."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from mlx_dpo.objectives.loss_function import Opponent
from mlx_dpo.training.components import TrainInputs, build_components
from mlx_dpo.training.on_policy.rollout import RolloutCompletion
from mlx_dpo.training.on_policy.rollout_source import RolloutSource
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.training.trainer import Trainer
from tests.conftest import CHECKPOINT, TRL

REFERENCE = json.loads((TRL / "on_policy_reference.json").read_text(encoding="utf-8"))
EOS = 2


class GivenScores(ScalarJudge):
    """Completions are called "ROW COMPLETION"; their scores are given."""

    name = "given scores"

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        places = [tuple(map(int, answer.completion.split())) for answer in answers]
        return [REFERENCE["scores"][completion][row] for row, completion in places]


class GivenSampler:
    """Completions are given."""

    num_completions = 2

    def __init__(self, source: RolloutSource) -> None:
        self.source = source

    def sample(self, positions: Sequence[int], prompts: Sequence[TokenIds]) -> list[tuple[RolloutCompletion, ...]]:
        rows = [self.source.prompts.index(position) for position in positions]
        assert [list(prompt) for prompt in prompts] == [REFERENCE["prompts"][row] for row in rows]
        second_is_own = self.source.settings.opponent is Opponent.POLICY
        return [(self.completion(row, 0, True), self.completion(row, 1, second_is_own)) for row in rows]

    def completion(self, row: int, number: int, is_own: bool) -> RolloutCompletion:
        ids = tuple(REFERENCE[("first", "second")[number]][row])
        reason = "stop" if ids[-1] == EOS else "length"
        return RolloutCompletion(ids, f"{row} {number}", reason, 0.0 if is_own else None)


def make_trainer(folder: Path, **settings: Any) -> Trainer:
    config = TrainConfig(
        on_policy=True,
        model=str(CHECKPOINT),
        init_adapter=str(TRL / "adapter"),
        reference="base",
        batch_size=len(REFERENCE["prompts"]),
        missing_eos_penalty=REFERENCE["missing_eos_penalty"],
        **settings,
    )
    prompts = [Prompt(row["prompt"]) for row in REFERENCE["rows"]]
    inputs = TrainInputs(config, None, None, None, None, Listener(), prompts=prompts, judge=GivenScores())
    trainer = build_components(inputs).make_trainer(RunFolder(folder), Listener())
    assert isinstance(trainer.source, RolloutSource)
    trainer.source.sampler = GivenSampler(trainer.source)  # type: ignore[assignment]
    return trainer


@pytest.mark.parametrize(
    ("loss", "settings"), [("sigmoid", {}), ("xpo", {"xpo_alpha": 0.01}), ("nash_md", {})], ids=lambda value: str(value)
)
@pytest.mark.parametrize("micro_batch_tokens", [64, 4096])
def test_loss_and_gradient_are_those_of_trl(
    tmp_path: Path, loss: str, settings: dict[str, Any], micro_batch_tokens: int
) -> None:
    expected = REFERENCE["runs"][loss]
    beta = expected["options"]["beta"]
    trainer = make_trainer(tmp_path, loss=loss, beta=beta, micro_batch_tokens=micro_batch_tokens, **settings)
    trainer.model.train()
    examples = trainer.source.batch(0)
    assert examples is not None
    batch = trainer.scorer.make_batch(examples, trainer.communicator)
    gradients, metrics, _ = trainer.gradients.compute(batch, 0, {})
    assert metrics[:, 0].mean() == pytest.approx(expected["loss"], abs=1e-4, rel=1e-5)
    by_name: dict[str, mx.array] = dict(tree_flatten(gradients))
    norm = np.sqrt(sum(float(mx.square(gradient).sum()) for gradient in by_name.values()))
    assert norm == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert by_name.keys() == expected["gradients"].keys()
    for name, values in expected["gradients"].items():
        np.testing.assert_allclose(np.array(by_name[name]).reshape(-1)[:4], values, rtol=1e-3, atol=1e-4)


def test_the_statistics_are_those_of_trl(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss="sigmoid", beta=0.3)
    examples = trainer.source.batch(0)
    assert examples is not None
    trainer.step(trainer.scorer.make_batch(examples, trainer.communicator))
    metrics, stats = trainer.source.report_metrics(), REFERENCE["runs"]["sigmoid"]["stats"]
    assert metrics["rollouts/reward"] == pytest.approx(stats["objective/scores"], abs=1e-6)
    assert 1 - metrics["rollouts/cut_off"] == pytest.approx(stats["val/contain_eos_token"])
    assert metrics["rollouts/ties"] == 0 and metrics["rollouts/distinct"] == 1
