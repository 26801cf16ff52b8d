"""On-policy runs of the tiny random model, whose judge adds up code points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_dpo import Listener, TrainConfig, train
from mlx_dpo.data.examples import Prompt
from mlx_dpo.judges.judge import Answer, Judge, ScalarJudge
from mlx_dpo.reporting.rollout_log import RolloutLog, read_rollouts
from mlx_dpo.training.events import TrainResult
from mlx_dpo.training.listener import Listeners
from tests.conftest import CHECKPOINT, TRL

PROMPTS = [Prompt(f"What is {number} times {number}?") for number in range(10)]


def score(text: str) -> float:
    """Any number that differs from answer to answer."""
    return sum(map(ord, text)) % 1000 / 100


class CodePointJudge(ScalarJudge):
    """Scores answers; in the first calls, `ties`, it has no preference."""

    name = "code points"
    identity = "code points"

    def __init__(self, ties: int = 0) -> None:
        self.ties, self.calls = ties, 0

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        self.calls += 1
        if self.calls <= self.ties:
            return [0.0] * len(answers)
        return [score(answer.completion) for answer in answers]


def on_policy_config(run: Path, **settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "on_policy": True,
        "model": str(CHECKPOINT),
        "init_adapter": str(TRL / "adapter"),
        "reference": "base",
        "adapter_path": str(run),
        "batch_size": 3,
        "iters": 5,
        "max_tokens": 12,
        "learning_rate": 1e-3,
        "steps_per_report": 2,
        "save_every": 2,
        "dropout": 0.0,
    }
    return TrainConfig(**{**defaults, **settings})


def train_on_policy(
    run: Path, listener: Listener | None = None, *, judge: Judge | None = None, rows: Any = None, **settings: Any
) -> TrainResult:
    listeners = Listeners(RolloutLog(), listener or Listener())
    config = on_policy_config(run, **settings)
    return train(config, prompts=PROMPTS, judge=judge or CodePointJudge(), rows=rows, listener=listeners)


def outcome(run: Path) -> tuple[bytes, bytes]:
    """The adapter and the rollouts, as bytes."""
    return (run / "adapters.safetensors").read_bytes(), (run / "rollouts.jsonl").read_bytes()


__all__ = ["PROMPTS", "CodePointJudge", "on_policy_config", "outcome", "read_rollouts", "score", "train_on_policy"]
