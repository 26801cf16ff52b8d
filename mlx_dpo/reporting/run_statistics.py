"""All numbers of a run, read back from its folder; what pages, pictures and diagnoses are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.config import read_yaml
from mlx_dpo.errors import UserError, Where
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.reporting.metrics_log import read_metrics
from mlx_dpo.training.listener import Metrics

ZERO_REWARD = 1e-4  # a policy whose mean reward is smaller is its reference, up to rounding


@dataclass(frozen=True)
class EvalRecord:
    """The held-out examples as one evaluation found them. Arrays have one row an example.

    Attributes:
        metrics: [examples] by TRL's name; NaN where there is no such number.
        lengths: [examples, completions], tokens; of pairs chosen, rejected.
        logps: [examples, completions], nats, of the policy.
        kl: [first examples, completions], nats, KL(policy || reference); None where it could not be measured.
    """

    step: int
    metrics: dict[str, np.ndarray]
    lengths: np.ndarray
    logps: np.ndarray
    kl: np.ndarray | None

    @classmethod
    def from_record(cls, line: dict[str, Any]) -> EvalRecord:
        """From a line of evaluations.jsonl."""
        metrics = {name: np.array(values, np.float64) for name, values in line["metrics"].items()}  # null becomes NaN
        kl = None if line["kl"] is None else np.array(line["kl"], np.float64)
        return cls(line["step"], metrics, np.array(line["lengths"]), np.array(line["logps"], np.float64), kl)

    @property
    def is_paired(self) -> bool:
        """Whether the examples are pairs."""
        return self.lengths.shape[1] == 2

    @property
    def margins(self) -> np.ndarray:
        """[examples], reward margins of pairs."""
        return self.metrics["rewards/margins"]

    @property
    def logp_margins(self) -> np.ndarray:
        """[examples], nats: log p(chosen) - log p(rejected) of pairs."""
        return self.metrics["logps/chosen"] - self.metrics["logps/rejected"]

    @property
    def kl_per_token(self) -> float | None:
        """Mean KL to the reference, nats a token."""
        return None if self.kl is None else float(self.kl.sum() / self.lengths[: len(self.kl)].sum())

    @property
    def is_reference(self) -> bool:
        """Whether the policy is its reference still, so that there are no rewards to compare."""
        rewards = np.concatenate([self.metrics["rewards/chosen"], self.metrics["rewards/rejected"]])
        return bool(np.nanmax(np.abs(rewards), initial=0.0) < ZERO_REWARD)


@dataclass(frozen=True)
class SampledCompletions:
    """Answers drawn at one step, their lengths in tokens, and the share of repeated 4-grams of tokens in each."""

    step: int
    prompts: list[str]
    answers: list[str]
    tokens: list[int]
    repeated: list[float]


@dataclass(frozen=True)
class RunStatistics:
    """A run.

    Attributes:
        reports: means over training pairs, a report each; evaluations: over held-out pairs, under the same names.
        moments: those of evaluations of which every example is known.
        pairs: what the policy gets most wrong, then most right, as `recorder.picked` tells it.
        about: command, versions, machine, limits.
    """

    path: Path
    config: dict[str, Any]
    train_metrics: list[Metrics]
    eval_metrics: list[Metrics]
    eval_records: list[EvalRecord] = field(default_factory=list)
    extreme_examples: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampledCompletions] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> RunStatistics:
        """A run's folder. Raises `UserError` where it holds none."""
        path = Path(path)
        if not (path / "config.yaml").exists():
            hint = "Name a folder that `mlx-dpo train` wrote (its --adapter-path)."
            raise UserError("there is no run here: no config.yaml", where=Where(str(path)), hint=hint)
        lines, folder = read_metrics(path), path / records.REPORT_FOLDER
        return cls(
            path=path,
            config=read_yaml(path / "config.yaml"),
            train_metrics=[line for line in lines if "loss" in line],
            eval_metrics=[strip_eval_prefix(line) for line in lines if "eval_loss" in line],
            eval_records=[
                EvalRecord.from_record(line) for line in records.read_jsonl(folder / records.EVALUATIONS_FILE)
            ],
            extreme_examples=records.read_json(folder / records.EXAMPLES_FILE) or [],
            samples=[SampledCompletions(**line) for line in records.read_jsonl(folder / records.SAMPLES_FILE)],
            metadata=records.read_json(folder / records.METADATA_FILE) or {},
        )

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.resolve().name

    @property
    def step(self) -> int:
        """Steps done as far as was written."""
        return int(max((line["step"] for line in [*self.train_metrics, *self.eval_metrics]), default=0))

    @property
    def steps(self) -> int:
        """Steps in all."""
        return int(self.metadata.get("steps") or self.step)

    @property
    def example_noun(self) -> str:
        """What the examples are called."""
        return str(self.metadata.get("what", "pairs"))

    @property
    def before(self) -> EvalRecord | None:
        """The held-out examples before the first step."""
        return self.eval_records[0] if self.eval_records and self.eval_records[0].step == 0 else None

    @property
    def after(self) -> EvalRecord | None:
        """The held-out examples as last measured, once there was a step."""
        return self.eval_records[-1] if self.eval_records and self.eval_records[-1].step > 0 else None


def strip_eval_prefix(metrics: Metrics) -> Metrics:
    """An evaluation's metrics without their eval_."""
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}
