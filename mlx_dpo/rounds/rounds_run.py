"""`train_rounds`: iterative DPO (Xu et al. 2023, arXiv 2312.16682; Dong et al. 2024, arXiv 2405.07863)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.prompt_files import PromptRow, read_prompt_rows
from mlx_dpo.data.shuffled_epochs import split_held_out
from mlx_dpo.errors import UserError, Where
from mlx_dpo.evaluation.example_sets import example_reader, open_evaluation_source
from mlx_dpo.evaluation.loss_setup import preference_loss_from_config
from mlx_dpo.judges.judge import Judge
from mlx_dpo.labeling.cached_judge import BudgetSpent, CachedJudge
from mlx_dpo.labeling.label_output import finished_summary
from mlx_dpo.labeling.label_run import label
from mlx_dpo.labeling.verdict_cache import VerdictCache
from mlx_dpo.reporting.evaluation_records import write_text_atomically
from mlx_dpo.rounds.round_evaluation import (
    AnswerSet,
    compare_answers,
    held_out_metrics,
    mean_score,
    read_samples,
    sample_statistics,
)
from mlx_dpo.rounds.round_folders import RoundFolder, RoundsFolder, is_finished, write_json_object
from mlx_dpo.rounds.round_progress import RoundProgress
from mlx_dpo.rounds.rounds_config import RoundsConfig
from mlx_dpo.rounds.rounds_page import render_rounds
from mlx_dpo.rounds.rounds_result import RoundsResult, best_round, reason_to_stop
from mlx_dpo.sampling.sample_prompts import sample
from mlx_dpo.training.run import train
from mlx_dpo.utils.json_files import finite_values
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

TrainRound = Callable[[TrainConfig], object]
OF_A_CALL = ("calls", "cache_hits", "remaining")  # what `label` returns of one call of it, and not of the file
RESULTS_FILE, PAGE_FILE = "rounds.json", "rounds.html"


def train_unless_finished(config: TrainConfig) -> None:
    """Train in this process, unless the run is finished."""
    if not is_finished(config.adapter_path):
        train(config)


def train_rounds(
    config: RoundsConfig,
    judge: Judge,
    *,
    train_round: TrainRound = train_unless_finished,
    progress: Progress = NO_PROGRESS,
) -> RoundsResult:
    """Improve a model by its own answers: in each round sample completions, judge them, train on the pairs, evaluate.

    Each round starts from the policy of the one before. All files are in `config.output_dir`: round-1/samples.jsonl,
    pairs.jsonl, adapter, answers.jsonl (to the evaluation prompts) and evaluation.json, and so on; rounds.json and
    rounds.html are written after every round. Called again with the same settings, it resumes: what is finished stays,
    and what was begun ends with the same bytes. More `rounds` may be asked for later.

    Args:
        config: the settings.
        judge: prefers among completions, and compares policies.
        train_round: trains on a round's pairs, resumes a run that was interrupted, and does nothing for a finished one.
        progress: receives what is being done.

    Raises:
        UserError: an input is wrong, the folder is of other settings, or the judge fails. What is done is kept.
        Interrupted: the training was stopped.
    """
    return IterativeTraining(config, judge, train_round, progress).run()


class IterativeTraining:
    """Runs rounds; arguments as those of `train_rounds`."""

    def __init__(self, config: RoundsConfig, judge: Judge, train_round: TrainRound, progress: Progress) -> None:
        self.config, self.train_round, self.progress = config, train_round, progress
        self.judge = CachedJudge(judge, VerdictCache(judge.identity, judge.name), config.max_calls)
        self.folder = RoundsFolder(config.output_dir)

    def run(self) -> RoundsResult:
        """Run the rounds that are missing."""
        prompts, eval_prompts = _split_prompts(self.config)
        _check_training(self.config.training)
        if not self.folder.settings.exists():
            self.judge.judge.check()
        self.folder.open(self.config.identity(self.judge.identity or self.judge.name), prompts, eval_prompts)
        rounds: list[dict[str, Any]] = []
        result = self._result(rounds)
        while result.stopped is None and len(rounds) < self.config.rounds:
            number = len(rounds) + 1
            try:
                rounds.append(self.folder.round(number).read_evaluation() or self._run_round(number))
                result = self._result(rounds)
            except BudgetSpent:
                result = replace(
                    result, stopped=f"the budget of calls of the judge does not suffice for round {number}"
                )
            self._write(result)
        return result

    def _run_round(self, number: int) -> dict[str, Any]:
        """Run a round, or what is missing of it, and write its results."""
        folder, start = self.folder.round(number), self._start(number)
        progress = RoundProgress(self.progress, f"Round {number}")
        self._sample(folder.samples, self.folder.prompts, start, self.config.n, number, progress)
        labels = finished_summary(folder.pairs) or label(
            str(folder.samples), self.judge, folder.pairs, self.config.labelling, progress=progress
        )
        if labels.get("remaining"):
            raise BudgetSpent
        results = {
            "round": number,
            "samples": sample_statistics(read_samples(folder.samples)),
            "labels": {name: value for name, value in labels.items() if name not in OF_A_CALL},
        }
        if labels["rows"]:
            self.train_round(self.config.training_of_round(folder.pairs, folder.adapter, start))
            mx.clear_cache()
            results |= self._evaluate(number, RoundProgress(self.progress, f"Round {number}, evaluation"))
        results = finite_values(results)
        folder.write_evaluation(results)
        return dict(results)

    def _start(self, number: int) -> str | None:
        """The adapter that a round starts from; None for the model itself."""
        return self.config.training.init_adapter if number == 1 else str(self.folder.round(number - 1).adapter)

    def _sample(
        self, output: Path, prompts: Path, adapter: str | None, n: int, number: int, progress: Progress
    ) -> None:
        training, seed = self.config.training, self.config.seed_of_round(number)
        sample(
            training.model,
            str(prompts),
            output,
            replace(self.config.sampling, seed=seed),
            adapter_path=adapter,
            n=n,
            raw=training.raw,
            template_kwargs=training.chat_template_kwargs or {},
            progress=progress,
        )
        mx.clear_cache()

    def _answers(self, folder: RoundFolder, adapter: str | None, progress: Progress) -> AnswerSet:
        """The answers of a policy to the evaluation prompts, with the same seed for every policy."""
        self._sample(folder.answers, self.folder.eval_prompts, adapter, 1, 1, progress)
        return AnswerSet.read(folder.answers)

    def _evaluate(self, number: int, progress: Progress) -> dict[str, Any]:
        """Measure the policy of a round against that at the start, and against that of the round before."""
        folder = self.folder.round(number)
        own = self._answers(folder, str(folder.adapter), progress)
        start = self._answers(self.folder.start, self.config.training.init_adapter, progress)
        progress.begin("Judging answers")
        previous = start if number == 1 else AnswerSet.read(self.folder.round(number - 1).answers)
        scores = {"own": mean_score(own, self.judge), "start": mean_score(start, self.judge)}
        against_start = compare_answers(own, start, self.judge)
        against_previous = against_start if number == 1 else compare_answers(own, previous, self.judge)
        held_out = held_out_metrics(self.config.training, folder.adapter, progress)
        mx.clear_cache()
        return {
            "against_start": against_start,
            "against_previous": against_previous,
            "mean_score": scores if self.judge.is_scalar else None,
            "held_out": held_out,
        }

    def _result(self, rounds: Sequence[dict[str, Any]]) -> RoundsResult:
        best = best_round(rounds)
        adapter = None if best is None else self.folder.round(best).adapter
        stopped = reason_to_stop(rounds, self.config.early_stop)
        return RoundsResult(list(rounds), best, adapter, stopped, self.folder.path / PAGE_FILE)

    def _write(self, result: RoundsResult) -> None:
        """Write the results and the page over all rounds."""
        answers = [AnswerSet.read(self.folder.start.answers)] if self.folder.start.answers.exists() else []
        files = [self.folder.round(values["round"]).answers for values in result.rounds]
        answers += [AnswerSet.read(file) for file in files if file.exists()]
        try:
            write_json_object(self.folder.path / RESULTS_FILE, result.to_mapping())
            write_text_atomically(
                result.page, render_rounds(f"Rounds in {self.folder.path.name}", self.judge.name, result, answers)
            )
        except OSError as error:
            raise UserError(f"can't be written: {error.strerror or error}", where=Where(str(result.page))) from None


def _check_training(training: TrainConfig) -> None:
    """Raise `UserError` if the loss or the held-out pairs can't be used, before anything is sampled."""
    loss = preference_loss_from_config(training)
    if loss.needs_reward_head:
        message = f"the loss {training.loss!r} trains a reward model, which writes no completions"
        raise UserError(message, field="loss", hint="Use `mlx-dpo train`, and the reward model as --judge here.")
    if training.valid_data is not None:
        open_evaluation_source(training.replace(data=training.valid_data), None, example_reader(loss))


def _split_prompts(config: RoundsConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the training and of the evaluation prompts.

    Raises:
        UserError: a file can't be read, or there are too few prompts.
    """
    rows = list(map(_prompt_row, read_prompt_rows(config.prompts)))
    if config.eval_prompts is not None:
        return rows, list(map(_prompt_row, read_prompt_rows(config.eval_prompts)))
    training, held_out = split_held_out(len(rows), config.num_eval_prompts, config.training.seed)
    if not len(held_out):
        hint = "Name a file with --eval-prompts."
        message = f"{len(rows)} prompts are too few to set some aside for the evaluation"
        raise UserError(message, where=Where(config.prompts), field="prompts", hint=hint)
    return [rows[i] for i in training], [rows[i] for i in held_out]


def _prompt_row(row: PromptRow) -> dict[str, Any]:
    return dict(row.row) or {"prompt": row.prompt.prompt}
