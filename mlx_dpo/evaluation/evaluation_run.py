"""All that `mlx-dpo evaluate` does: metrics on held-out examples, judged answers, and benchmark tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.adapters.adapter_folder import refuse_reward_model
from mlx_dpo.config import TrainConfig
from mlx_dpo.evaluation.benchmark_tasks import require_lm_eval_harness, run_tasks
from mlx_dpo.evaluation.evaluator import Evaluator
from mlx_dpo.evaluation.loss_setup import config_for_adapters
from mlx_dpo.evaluation.metric_summary import compare_results
from mlx_dpo.evaluation.pairwise_evaluation import pairwise_evaluation, require_two_models
from mlx_dpo.judges.judge import Judge
from mlx_dpo.sampling.completions import SamplingParams
from mlx_dpo.utils.progress import NO_PROGRESS, Progress


@dataclass(frozen=True)
class EvaluationRun:
    """An evaluation of one or more policies.

    Attributes:
        config: names the model, data, reference and loss.
        adapters: adapter folders, evaluated one after the other; None is the model without an adapter.
        by: columns of the rows to group the metrics by.
        judge: compares answers of each policy with its base model's; None for no answers.
        num_prompts: how many prompts to answer for the judge.
        sampling: how answers are drawn; its seed is also that of the tasks.
        tasks: names of lm-evaluation-harness tasks to run.
        task_limit: how many examples of each task to use; None for all.
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
        """Check what would otherwise fail only after the metrics are computed.

        Raises:
            UserError: a base and a tuned model are needed, the judge does not work, or a package is missing.
        """
        for adapter in self.adapters if self.judge or self.tasks else ():
            if adapter is not None:
                hint = "Leave out --generate, --judge and --tasks; name the policy's adapter to have it judged."
                refuse_reward_model(adapter, "which writes no completions", hint)
        if self.judge:
            require_two_models(self.config, self.adapters[0])
            self.judge.check()
        if self.tasks:
            require_lm_eval_harness()

    def run(self, progress: Progress = NO_PROGRESS) -> list[dict[str, Any]]:
        """Evaluate all policies.

        Args:
            progress: receives what is being done.

        Returns:
            A summary of each policy as plain values, as `mlx-dpo evaluate --json` prints it.

        Raises:
            UserError: an input is wrong, or the judge or a task fails.
        """
        progress.begin("Reading the pairs")
        evaluator = Evaluator(config_for_adapters(self.config, self.adapters), by=self.by)
        results = []
        for adapter in self.adapters:
            name = "the model" if adapter is None else str(adapter)
            progress.begin(f"Loading {name}")
            counter = progress.counter(f"Evaluating {name}", evaluator.examples.example_kind)
            results.append(evaluator.evaluate(adapter, progress=counter, on_status=progress.begin))
        summaries = []
        for i, (adapter, result) in enumerate(zip(self.adapters, results, strict=True)):
            summary: dict[str, Any] = {} if len(results) == 1 else {"adapter": str(adapter)}
            summary |= result.summary
            if i:
                summary["against_first"] = compare_results(results[0], result)
            if self.judge:
                progress.begin("Generating and judging answers")
                source = evaluator.examples.examples.source
                judged = pairwise_evaluation(self.config, adapter, source, self.num_prompts, self.judge, self.sampling)
                summary["head_to_head"] = judged.summary
            if self.tasks:
                progress.begin("Running tasks")
                seed, limit = self.sampling.seed, self.task_limit
                summary["tasks"] = run_tasks(self.config.model, adapter, self.tasks, limit=limit, seed=seed)
            summaries.append(summary)
        return summaries
