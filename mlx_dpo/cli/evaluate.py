"""mlx-dpo evaluate"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.config_options import with_config_options
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.cli.tables.metric_tables import evaluation_tables, warn_about_training_settings
from mlx_dpo.config import COLUMN_KNOBS, TrainConfig
from mlx_dpo.errors import UserError

JUDGE_PANEL, TASKS_PANEL = "Answers, judged head to head", "Benchmarks"  # panels of --help
OBJECTIVE_FIELDS = [field.name for field in dataclasses.fields(TrainConfig) if field.metadata["group"] == "Objective"]
OPTIONS = (
    "model",
    "data",
    *OBJECTIVE_FIELDS,
    "batch_size",
    "max_length",
    "overlong",
    "raw",
    *COLUMN_KNOBS,
)


@with_config_options(
    OPTIONS,
    data="Preference pairs: a file, a folder with valid.jsonl, -, or of the Hub: user/name[@revision][:split].",
    reference="base: the model without the adapter (the default). none. Or another model's folder.",
    batch_size="Pairs that are measured together. [dim]\\[default: 8][/]",
)
def evaluate(
    flags: dict[str, Any],
    adapter_path: Annotated[
        list[Path] | None,
        typer.Option(
            help="Adapter folder to put on the model, or a folder of checkpoints; may be given several times."
        ),
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="Column to sum up by, like category; may be given several times.")
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Answer this many of the prompts with and without the adapter, and judge.",
            rich_help_panel=JUDGE_PANEL,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Who judges: FILE.py:NAME, a model, an adapter (by its rewards), or the URL of an OpenAI-like API.",
            rich_help_panel=JUDGE_PANEL,
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="The model that the API is to use.", rich_help_panel=JUDGE_PANEL)
    ] = None,
    judge_key_env: Annotated[
        str, typer.Option(help="Environment variable that holds the API's key.", rich_help_panel=JUDGE_PANEL)
    ] = "OPENAI_API_KEY",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens.", rich_help_panel=JUDGE_PANEL)
    ] = 512,
    temp: Annotated[float, typer.Option(min=0, help="Temperature of the answers.", rich_help_panel=JUDGE_PANEL)] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Mass to sample from.", rich_help_panel=JUDGE_PANEL)] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of answers and tasks.", rich_help_panel=JUDGE_PANEL)] = 0,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Benchmarks of lm-evaluation-harness, a,b,c, run before and after.", rich_help_panel=TASKS_PANEL
        ),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many examples of each task.", rich_help_panel=TASKS_PANEL)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model, with an adapter or without, on preference pairs.

    Rewards are beta times the log-ratio of policy and reference, summed over the completion; an accuracy is the share
    of pairs whose chosen completion has the higher one. With --reference none they are of the log-probs themselves.
    `mlx-dpo losses NAME` tells of each loss what its rewards are. Intervals hold the mean of all such pairs with 95%
    certainty; pairs of the same row count as one draw. Of several adapters, each is compared with the first, pair by
    pair. An adapter that was trained with --fuse-bits is measured as the model that `mlx-dpo fuse` makes of it.

    --generate has model and adapter answer prompts of the data, and --judge compares the answers, both ways round. The
    length-controlled win rate is what it would be if answers were as long as the base's (as AlpacaEval 2 has it).

    [bold]Examples[/]

      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters --data valid.jsonl --by category

      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters/checkpoints --data valid.jsonl

      mlx-dpo evaluate --model ./fused --reference ./Qwen3-4B-4bit --data valid.jsonl --json

      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters --data valid.jsonl --generate 50 \\
        --judge https://api.openai.com/v1 --judge-model gpt-4.1-mini --tasks arc_easy --task-limit 200
    """
    config = TrainConfig.from_mapping(flags)
    if (generate is None) != (judge is None):
        hint = "As in --generate 50 --judge ./Qwen3-4B-4bit."
        raise UserError("--generate and --judge go together", field="generate", hint=hint)
    from mlx_dpo.evaluation.evaluation_run import EvaluationRun
    from mlx_dpo.evaluation.evaluator import find_adapters
    from mlx_dpo.judges.judge_registry import load_judge
    from mlx_dpo.sampling.generation import SamplingParams

    adapters: list[Path | None] = list(
        dict.fromkeys(adapter for path in adapter_path or () for adapter in find_adapters(path))
    )
    warn_about_training_settings(flags, ("loss", "beta", "label_smoothing"), adapters)
    examination = EvaluationRun(
        config,
        adapters or [None],
        by=by or [],
        judge=load_judge(judge, model=judge_model, api_key_env=judge_key_env) if judge else None,
        num_prompts=generate or 0,
        sampling=SamplingParams(max_tokens, temp, top_p, seed),
        tasks=[name.strip() for name in (tasks or "").split(",") if name.strip()],
        task_limit=task_limit,
    )
    examination.check()
    with stderr_console.status("Loading") as status:
        told = examination.run(status.update)
    if json:
        print_json(told[0] if len(told) == 1 else {"adapters": told})
    else:
        for table in evaluation_tables(told):
            stdout_console.print(table)
