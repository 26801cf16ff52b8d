"""`label`: the completions in a file of rows, judged, and written as rows to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.example_sources import ExampleSource
from mlx_dpo.data.examples import Candidates
from mlx_dpo.errors import RowError, UserError
from mlx_dpo.evaluation.example_sets import Rows, examples_from_rows
from mlx_dpo.evaluation.implicit_rewards import adapter_rewards
from mlx_dpo.judges.judge import Judge
from mlx_dpo.judges.judge_registry import load_judge
from mlx_dpo.labeling.cached_judge import CachedJudge
from mlx_dpo.labeling.candidate_verdicts import judge_candidates, judge_requests
from mlx_dpo.labeling.label_output import LabelOutput
from mlx_dpo.labeling.label_settings import LabelSettings
from mlx_dpo.labeling.label_summary import LabelTally
from mlx_dpo.labeling.labelled_rows import labelled_rows
from mlx_dpo.labeling.rows_to_label import RowToLabel, parse_row_to_label
from mlx_dpo.labeling.verdict_cache import VerdictCache
from mlx_dpo.utils.formatting import plural
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

PROMPTS_PER_CALL = 16  # prompts whose completions are judged, and written, together


def label(
    data: str | Path | Rows,
    judge: Judge | str,
    output: str | Path,
    settings: LabelSettings | None = None,
    *,
    max_calls: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Have a judge compare or score the completions of each row, and write its preferences to a JSONL file.

    Rows are written in the order of `data`, a few prompts at a time. If the file exists already, the same call resumes
    it. Verdicts are cached on disk by judge, prompt and completions, so nothing is asked twice, and the file is the
    same at the end however often it was interrupted. Another judge, other data or other settings are refused.

    Args:
        data: a file of rows with `prompt` and `completions`, as `sample` writes them, or rows in memory; rows with
            pairs, scores, rankings or labels too, with which the judge's agreement is then measured.
        judge: a judge, or the text that names one; see `load_judge`. A `CachedJudge` has a cache and a budget already.
        output: the file to write.
        settings: which rows to write; None: pairs of the best and the worst completion.
        max_calls: budget of comparisons and scores to ask the judge for in this call; None: no limit. A prompt that
            needs more than what is left is not begun.
        progress: receives what is being done.

    Returns:
        `rows`, written; `remaining`, prompts that the budget did not suffice for; `calls` of the judge; `cache_hits`;
        and what `LabelTally.summary` has.

    Raises:
        UserError: the data, the judge or the output can't be used, or the judge fails. What is done is kept.
    """
    settings = settings or LabelSettings()
    judge = load_judge(judge, adapter_rewards=adapter_rewards) if isinstance(judge, str) else judge
    _check_judge(judge, settings)
    progress.begin("Reading the rows")
    source = _open_source(data, progress)
    if not isinstance(judge, CachedJudge):
        judge = CachedJudge(judge, VerdictCache(judge.identity, judge.name), max_calls)
    return LabelRun(judge, source, settings, progress).write(output)


class LabelRun:
    """Judges the rows of a source, a few at a time.

    Args:
        judge: gives verdicts or scores.
        source: the rows, as `Candidates`.
        settings: which rows to write.
        progress: receives what is being done.
    """

    def __init__(self, judge: CachedJudge, source: ExampleSource, settings: LabelSettings, progress: Progress) -> None:
        self.judge, self.source, self.settings, self.progress = judge, source, settings, progress
        self._first_calls, self._first_hits = judge.num_calls, judge.num_hits
        self.tally = LabelTally(settings)
        self._group_size, self._group_calls, self._calls_before = 0, 0, 0

    def write(self, output: str | Path) -> dict[str, Any]:
        """Write the rows to a file, new or to resume it. Returns what `label` does."""
        identity = {"judge": self.judge.identity or self.judge.name, "data": self.source.digest}
        show = self.progress.counter("Judging", "prompts")
        show(0, len(self.source))
        settings = {**identity, **asdict(self.settings)}
        with LabelOutput(output, settings) as file, self.judge.session(on_verdict=self._show_progress):
            for group in self._groups():
                self._judge(group, file)
            num_done = self.tally.counts["prompts"]
            summary = {"rows": file.num_rows, **self.tally.summary}
            if num_done == len(self.source):
                file.finish(summary)
        remaining = len(self.source) - num_done
        hits = self.judge.num_hits - self._first_hits
        return {**summary, "remaining": remaining, "calls": self._num_calls, "cache_hits": hits}

    @property
    def _num_calls(self) -> int:
        """Calls of the judge by this run."""
        return self.judge.num_calls - self._first_calls

    def _groups(self) -> Iterator[list[RowToLabel]]:
        """The rows that are judged together; the last group ends where the budget does."""
        for start in range(0, len(self.source), PROMPTS_PER_CALL):
            stop = min(start + PROMPTS_PER_CALL, len(self.source))
            group = [self._row(i) for i in range(start, stop)]
            affordable = self._within_budget(group)
            if affordable:
                yield affordable
            if len(affordable) < len(group):
                return

    def _row(self, index: int) -> RowToLabel:
        candidates = self.source[index]
        assert isinstance(candidates, Candidates)
        if self.settings.drop_truncated and candidates.row.get("finish_reasons") is None:
            hint = "Rows of `mlx-dpo sample` have them. Leave out --drop-truncated for others."
            where = self.source.location(index)
            raise RowError("there are none", kind="missing key", where=where, field="finish_reasons", hint=hint)
        return RowToLabel.from_candidates(candidates, self.settings.drop_truncated)

    def _within_budget(self, group: list[RowToLabel]) -> list[RowToLabel]:
        """The first rows of a group that take no more calls than what is left."""
        count = next(n for n in range(len(group), -1, -1) if self._num_new(group[:n]) <= self.judge.calls_left)
        return group[:count]

    def _num_new(self, group: Sequence[RowToLabel]) -> int:
        """Calls that a group takes."""
        prompts, texts = [row.candidates.prompt for row in group], [row.texts for row in group]
        return self.judge.num_new(judge_requests(self.judge, prompts, texts))

    def _judge(self, group: list[RowToLabel], file: LabelOutput) -> None:
        self._group_size, self._group_calls = len(group), self._num_new(group)
        self._calls_before = self.judge.num_calls
        prompts, texts = [row.candidates.prompt for row in group], [row.texts for row in group]
        try:
            verdicts = judge_candidates(self.judge, prompts, texts)
        except UserError as error:
            raise self._with_kept(error) from error
        for row, row_verdicts in zip(group, verdicts, strict=True):
            self.tally.add(row, row_verdicts)
        file.write(
            [
                line
                for row, row_verdicts in zip(group, verdicts, strict=True)
                for line in labelled_rows(row, row_verdicts, self.settings)
            ]
        )
        self.progress.update(self.tally.counts["prompts"], len(self.source))

    def _show_progress(self) -> None:
        share = (self.judge.num_calls - self._calls_before) / self._group_calls
        self.progress.update(self.tally.counts["prompts"] + share * self._group_size, len(self.source))

    def _with_kept(self, error: UserError) -> UserError:
        """The error of a judge, with what is kept."""
        kept = f"{plural(self._num_calls, 'verdict')} of this run are kept: the same command resumes after them."
        hint = kept if self.judge.cache.path is not None else ""
        hints = "\n".join(filter(None, (error.hint, hint)))
        return UserError(error.message, where=error.where, field=error.field, hint=hints)


def _check_judge(judge: Judge, settings: LabelSettings) -> None:
    if settings.threshold is not None and not judge.is_scalar:
        hint = "Without it, completions are labelled by the mean of their prompt, which is a win rate of one half."
        raise UserError("is a score, and this judge only compares", field="threshold", hint=hint)


def _open_source(data: str | Path | Rows, progress: Progress) -> ExampleSource:
    if isinstance(data, (str, Path)):
        return ExampleFile.open(
            str(data), on_progress=lambda share: progress.update(share, 1), parse=parse_row_to_label
        )
    return examples_from_rows(data, "rows", parse_row_to_label)
