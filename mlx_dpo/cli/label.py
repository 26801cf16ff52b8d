"""The command `mlx-dpo label`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import print_json, print_message, print_tables, stderr_console
from mlx_dpo.cli.judge_options import JUDGE_HELP, JudgeKeyEnv, JudgeModel, Rubric, judge_from_options
from mlx_dpo.cli.row_arguments import FILE_KINDS
from mlx_dpo.errors import UserError


class RowsToWrite(StrEnum):
    """Values of --format."""

    pairs = "pairs"
    scores = "scores"
    rankings = "rankings"
    labelled = "labelled"


class PairsToWrite(StrEnum):
    """Values of --pairs."""

    best_worst = "best-worst"
    all = "all"
    top_k = "top-k"


def label(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help=f"{FILE_KINDS}, or - for stdin; several with --merge.")
    ],
    output: Annotated[Path, typer.Option(help="The JSONL file to write, or to resume.")],
    judge: Annotated[str | None, typer.Option(help=JUDGE_HELP, rich_help_panel="Judge", show_default=False)] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge verdicts of several people, instead of asking a judge.")
    ] = False,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKeyEnv = "OPENAI_API_KEY",
    rubric: Rubric = None,
    format: Annotated[
        RowsToWrite,
        typer.Option(help="Rows to write: pairs, completions with scores or rankings, or single labelled completions."),
    ] = RowsToWrite.pairs,
    pairs: Annotated[
        PairsToWrite,
        typer.Option(help="Pairs of a prompt: the best and the worst completion, all, or the --top-k clearest ones."),
    ] = PairsToWrite.best_worst,
    margin: Annotated[
        float, typer.Option(min=0, help="Smallest difference of the scores of a pair, or of a score and the threshold.")
    ] = 0.0,
    top_k: Annotated[int, typer.Option(min=1, help="Pairs per prompt, which share no completion.")] = 1,
    length_control: Annotated[
        float, typer.Option(min=0, help="Score to subtract for each character before pairs are selected, like 0.001.")
    ] = 0.0,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score above which a completion is labelled true. Default: the mean of its prompt.",
            show_default=False,
        ),
    ] = None,
    drop_truncated: Annotated[
        bool, typer.Option("--drop-truncated", help="Leave out completions that ended at --max-tokens.")
    ] = False,
    max_calls: Annotated[
        int | None, typer.Option(min=0, help="Budget of judge calls. When it is spent, what is done is kept.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Have a judge prefer among completions, and write pairs, scores, rankings or labels to train on.

    FILE has rows with a `prompt` and `completions`, as `mlx-dpo sample` writes them. A function judge is
    `def name(prompt, answer)`, which returns a score, or `def name(prompt, first, second)`, which returns 1, 0 or 0.5.
    A judge that compares sees every two different completions of a prompt in both orders: n completions take
    n * (n - 1) calls; the score of a completion is then its mean win rate. A judge that scores takes n calls.

    Verdicts are cached on disk, so the same command resumes, and another --format or --margin asks nothing again. Rows
    may be pairs, or have scores, rankings or labels, already: then the judge's agreement with these is reported.

    --merge takes files of verdicts that people gave in `mlx-dpo collect`, one file or one `labeller` a person, writes
    the pairs that most of them prefer, and reports how far each two agree.

    Examples:
      mlx-dpo label samples.jsonl --judge judges.py:polite --output pairs.jsonl
      mlx-dpo label samples.jsonl --judge https://api.openai.com/v1 --judge-model gpt-4.1-mini --rubric rubric.txt
        --max-calls 2000 --output pairs.jsonl
      mlx-dpo label samples.jsonl --judge ./reward-adapter --pairs all --margin 1 --drop-truncated --output pairs.jsonl
      mlx-dpo label --merge ana.jsonl ben.jsonl --output pairs.jsonl
    """
    if merge:
        _merge(files, output, judge, json)
        return
    if judge is None:
        raise UserError("is needed", field="judge", hint="Name a judge, or merge verdicts of people with --merge.")
    if len(files) > 1:
        raise UserError("one FILE is labelled at a time", hint="Verdicts in several files are merged by --merge.")
    from mlx_dpo.cli.tables.label_table import label_table
    from mlx_dpo.labeling.label_run import label as label_rows
    from mlx_dpo.labeling.label_settings import LabelSettings
    from mlx_dpo.reporting.phase_progress import PhaseProgress

    settings = LabelSettings(format.value, pairs.value, top_k, margin, length_control, threshold, drop_truncated)
    loaded_judge = judge_from_options(judge, judge_model, judge_key_env, rubric)
    with PhaseProgress(stderr_console) as progress:
        summary = label_rows(files[0], loaded_judge, output, settings, max_calls=max_calls, progress=progress)
    if summary["remaining"]:
        print_message(_budget_message(summary))
    if json:
        print_json({"output": str(output), **summary})
    else:
        print_tables([label_table(summary, settings.format, loaded_judge.name)])


def _budget_message(summary: dict[str, Any]) -> str:
    from mlx_dpo.utils.formatting import plural

    return (
        f"The budget of calls does not suffice for {plural(summary['remaining'], 'more prompt')}. "
        "What is done is kept: the same command resumes after it."
    )


def _merge(files: list[str], output: Path, judge: str | None, json: bool) -> None:
    from mlx_dpo.cli.tables.merge_table import merge_tables
    from mlx_dpo.labeling.verdict_merging import merge_verdicts

    if judge is not None:
        raise UserError("asks no judge", field="merge", hint="Leave --judge or --merge out.")
    summary = merge_verdicts(files, output)
    if json:
        print_json({"output": str(output), **summary})
    else:
        print_tables(merge_tables(summary))
