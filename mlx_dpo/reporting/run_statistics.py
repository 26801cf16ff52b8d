"""The numbers of a run, read back from its folder: the input of reports, charts and diagnostics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.config_files import CONFIG_FILE, read_yaml
from mlx_dpo.errors import UserError, Where
from mlx_dpo.lineage.lineage_steps import read_adapter_lineage
from mlx_dpo.lineage.lineage_text import describe_lineage
from mlx_dpo.objectives.loss_registry import only_raises_likelihood
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.reporting.metrics_log import read_metrics
from mlx_dpo.training.events import Metrics
from mlx_dpo.utils.formatting import strip_eval_prefix

ZERO_REWARD = 1e-4  # rewards of a smaller size are rounding errors of a policy that equals its reference


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation of the held-out examples, example by example.

    Attributes:
        step: optimizer steps done before it.
        metrics: [examples] by metric name; NaN if an example has no such metric.
        lengths: [examples, completions], completion lengths in tokens. A pair has columns chosen and rejected.
        logps: [examples, completions], the policy's log-probabilities in nats; None of a reward model.
        kl: [first examples, completions], KL(policy || reference) in nats; None if it could not be measured.
    """

    step: int
    metrics: dict[str, np.ndarray]
    lengths: np.ndarray
    logps: np.ndarray | None
    kl: np.ndarray | None

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> EvalRecord:
        """Parse a line of evaluations.jsonl."""
        metrics = {name: np.array(values, np.float64) for name, values in line["metrics"].items()}  # null becomes NaN
        kl = None if line["kl"] is None else np.array(line["kl"], np.float64)
        logps = None if line["logps"] is None else np.array(line["logps"], np.float64)
        return cls(line["step"], metrics, np.array(line["lengths"]), logps, kl)

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
        """[examples], log p(chosen) - log p(rejected) of pairs, in nats."""
        return self.metrics["logps/chosen"] - self.metrics["logps/rejected"]

    def require_logps(self) -> np.ndarray:
        """`logps`, where they are known to be recorded."""
        assert self.logps is not None
        return self.logps

    @property
    def kl_per_token(self) -> float | None:
        """Mean KL to the reference in nats per token."""
        return None if self.kl is None else float(self.kl.sum() / self.lengths[: len(self.kl)].sum())

    @property
    def is_reference(self) -> bool:
        """Whether the policy still equals its reference, so that all rewards are zero."""
        rewards = np.concatenate([self.metrics["rewards/chosen"], self.metrics["rewards/rejected"]])
        return bool(np.nanmax(np.abs(rewards), initial=0.0) < ZERO_REWARD)


@dataclass(frozen=True)
class SampledCompletions:
    """Completions sampled from the policy at one step.

    Attributes:
        step: optimizer steps done before it.
        prompts: the prompts as text.
        completions: a completion of each prompt.
        lengths: tokens of each completion.
        repeated_shares: share of the 4-grams of tokens in each completion that occur earlier in it.
    """

    step: int
    prompts: list[str]
    completions: list[str]
    lengths: list[int]
    repeated_shares: list[float]

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> SampledCompletions:
        """Parse a line of samples.jsonl."""
        return cls(line["step"], line["prompts"], line["answers"], line["tokens"], line["repeated"])


@dataclass(frozen=True)
class RunStatistics:
    """The numbers that a run's folder records.

    Attributes:
        path: the folder.
        config: the run's settings.
        train_metrics: means over training examples since the last report.
        eval_metrics: means over held-out examples, under the same names.
        eval_records: the evaluations whose single examples were recorded.
        extreme_examples: the result of `run_recorder.extreme_examples`.
        samples: completions sampled before and after training.
        metadata: command, versions, machine, number of steps and limits.
        lineage: description of the lineage, in one line.
        rollout_metrics: of an on-policy run, the reports on what was sampled: those of `train_metrics`, and those on
            steps for which the judge had no preference or no score.
    """

    path: Path
    config: dict[str, Any]
    train_metrics: list[Metrics]
    eval_metrics: list[Metrics]
    eval_records: list[EvalRecord] = field(default_factory=list)
    extreme_examples: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampledCompletions] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    lineage: str = ""
    rollout_metrics: list[Metrics] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> RunStatistics:
        """Read a run's folder.

        Raises:
            UserError: the folder holds no run.
        """
        path = Path(path)
        if not (path / CONFIG_FILE).exists():
            hint = "Name a folder that `mlx-dpo train` wrote (its --adapter-path)."
            raise UserError(f"there is no run here: no {CONFIG_FILE}", where=Where(str(path)), hint=hint)
        lines, folder = read_metrics(path), path / records.REPORT_FOLDER
        evaluations = records.read_jsonl(folder / records.EVALUATIONS_FILE)
        lineage = read_adapter_lineage(path)
        return cls(
            path=path,
            config=read_yaml(path / CONFIG_FILE),
            train_metrics=[line for line in lines if "loss" in line],
            eval_metrics=[strip_eval_prefix(line) for line in lines if "eval_loss" in line],
            eval_records=list(map(EvalRecord.from_json, evaluations)),
            extreme_examples=records.read_json(folder / records.EXAMPLES_FILE) or [],
            samples=list(map(SampledCompletions.from_json, records.read_jsonl(folder / records.SAMPLES_FILE))),
            metadata=records.read_json(folder / records.METADATA_FILE) or {},
            lineage=describe_lineage(lineage) if lineage else "",
            rollout_metrics=[line for line in lines if {"rollouts/ties", "objective/kl"} & line.keys()],
        )

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.path.resolve().name

    @property
    def step(self) -> int:
        """The last step that was reported or evaluated."""
        return int(
            max((line["step"] for line in [*self.train_metrics, *self.rollout_metrics, *self.eval_metrics]), default=0)
        )

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return int(self.metadata.get("steps") or self.step)

    @property
    def is_reward_model(self) -> bool:
        """Whether it trained a reward model: its metrics are those of rewards without log-probs."""
        return any("mean_reward" in line for line in [*self.train_metrics[:1], *self.eval_metrics[:1]])

    @property
    def is_policy_gradient(self) -> bool:
        """Whether it was trained by PPO or RLOO."""
        return any("objective/kl" in line for line in self.rollout_metrics)

    @property
    def is_likelihood_only(self) -> bool:
        """Whether its loss only raises likelihoods (SFT), so that it is not trained to prefer anything."""
        return only_raises_likelihood(str(self.config.get("loss", "")))

    @property
    def example_kind(self) -> str:
        """What the held-out examples are: "pairs" or "completions"."""
        kind = str(self.metadata.get("what", "pairs"))
        return "pairs" if kind == "prompts" else kind

    @property
    def before(self) -> EvalRecord | None:
        """The evaluation before the first step."""
        return self.eval_records[0] if self.eval_records and self.eval_records[0].step == 0 else None

    @property
    def after(self) -> EvalRecord | None:
        """The last evaluation after a step."""
        return self.eval_records[-1] if self.eval_records and self.eval_records[-1].step > 0 else None
