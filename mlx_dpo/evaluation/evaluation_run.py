"""Policies examined: measured on pairs, judged by their answers, tried on benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.evaluation.benchmark_tasks import require_lm_eval, run_tasks
from mlx_dpo.evaluation.evaluator import Evaluator
from mlx_dpo.evaluation.metric_summary import compare_results
from mlx_dpo.evaluation.pairwise_evaluation import pairwise_evaluation, require_two_models
from mlx_dpo.judges.judge import Judge
from mlx_dpo.sampling.generation import SamplingParams


@dataclass(frozen=True)
class EvaluationRun:
    """All that `mlx-dpo evaluate` finds out of some policies.

    Attributes:
        adapters: on the model of the config, one after the other; None is the model as it is.
        by: columns to sum up by.
        judge, prompts, sampling: of answers to so many prompts; no judge, no answers.
        tasks, task_limit: benchmarks, and how many examples of each.
    """

    config: TrainConfig
    adapters: list[Path | None]
    by: list[str]
    judge: Judge | None
    num_prompts: int
    sampling: SamplingParams
    tasks: list[str]
    task_limit: int | None

    def check(self) -> None:
        """Raise `UserError` for what would otherwise be found out after hours."""
        if self.judge:
            require_two_models(self.config, self.adapters[0])
            self.judge.check()
        if self.tasks:
            require_lm_eval()

    def run(self, on_status: Callable[[str], None]) -> list[dict[str, Any]]:
        """Of each policy, what was found, as plain values; `say` hears what is being done. Raises `UserError`."""
        evaluation = Evaluator(self.config, by=self.by)
        measured = [
            evaluation.evaluate(adapter, progress=lambda done, pairs: on_status(f"{done:,} of {pairs:,} pairs"))
            for adapter in self.adapters
        ]
        told = []
        for adapter, one in zip(self.adapters, measured, strict=True):
            name = {} if len(measured) == 1 else {"adapter": str(adapter)}
            told.append({**name, **one.summary})
            if one is not measured[0]:
                told[-1]["against_first"] = compare_results(measured[0], one)
            if self.judge:
                on_status("Answering and judging")
                source = evaluation.examples.examples.source
                held = pairwise_evaluation(self.config, adapter, source, self.num_prompts, self.judge, self.sampling)
                told[-1]["head_to_head"] = held.summary
            if self.tasks:
                on_status("Running tasks")
                seed, limit = self.sampling.seed, self.task_limit
                told[-1]["tasks"] = run_tasks(self.config.model, adapter, self.tasks, limit=limit, seed=seed)
        return told
