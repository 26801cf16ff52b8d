"""The command `mlx-dpo evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.backend_notes import print_backend_notes
from mlx_dpo.cli.config_options import ENCODING_SETTINGS, JsonFlag, with_config_options
from mlx_dpo.cli.console import print_json, print_tables, stderr_console
from mlx_dpo.cli.judge_options import JUDGE_HELP, Rubric, judge_from_options
from mlx_dpo.cli.option_values import complete_judge
from mlx_dpo.cli.tables.metric_tables import evaluation_tables, warn_about_training_settings
from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import UserError

JUDGE_PANEL, TASKS_PANEL = "Completions, judged head to head", "Benchmarks"  # panels of --help
OBJECTIVE_FIELDS = [field.name for field in dataclasses.fields(TrainConfig) if field.metadata["group"] == "Objective"]
OPTIONS = ("model", "data", *OBJECTIVE_FIELDS, "batch_size", "max_length", "overlong", *ENCODING_SETTINGS)


@with_config_options(
    OPTIONS,
    helps={
        "data": "Preference pairs: file, folder with valid.jsonl, -, or Hub data set user/name[@revision][:split].",
        "reference": "base: the model without adapter. none. Or the folder of another model.",
        "batch_size": "Pairs that are evaluated together.",
    },
    defaults={"reference": "base"},
)
def evaluate(
    flags: dict[str, Any],
    adapter_path: Annotated[
        list[Path] | None,
        typer.Option(help="Adapter folder, or a folder of checkpoints; can be repeated. Default: no adapter."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Column whose values get metrics of their own, like category; can be repeated."),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of prompts to complete without and with the adapter, for the judge.",
            rich_help_panel=JUDGE_PANEL,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="JUDGE", autocompletion=complete_judge, help=JUDGE_HELP, rich_help_panel=JUDGE_PANEL),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Model name in the API.", rich_help_panel=JUDGE_PANEL)] = None,
    judge_key_env: Annotated[
        str, typer.Option(help="Environment variable with the API key.", rich_help_panel=JUDGE_PANEL)
    ] = "OPENAI_API_KEY",
    rubric: Rubric = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest completion, in tokens.", rich_help_panel=JUDGE_PANEL)
    ] = 512,
    temp: Annotated[float, typer.Option(min=0, help="Sampling temperature.", rich_help_panel=JUDGE_PANEL)] = 0.7,
    top_p: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Sample from the most likely tokens of this probability.", rich_help_panel=JUDGE_PANEL
        ),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and tasks.", rich_help_panel=JUDGE_PANEL)] = 0,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-evaluation-harness, a,b,c, without and with the adapter.", rich_help_panel=TASKS_PANEL
        ),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Use only this many examples of each task.", rich_help_panel=TASKS_PANEL)
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Evaluate a model, with or without an adapter, on preference pairs.

    Rewards are beta times the log-ratio of policy and reference, summed over the completion. Accuracy is the share of
    pairs whose chosen completion has the higher reward. With --reference none, log-probs replace the log-ratios;
    `mlx-dpo losses NAME` says what the rewards of a loss are. Intervals cover the mean of all such pairs with 95%
    probability; pairs of the same row count as one draw. Several adapters are compared with the first, pair by pair.
    An adapter that was trained with --fuse-bits is evaluated as the model that `mlx-dpo fuse` makes of it.

    With --generate, model and adapter complete prompts of the data, and --judge compares the completions in both
    orders. The length-controlled win rate is what it would be if completions were as long as those of the model
    without adapter (as in AlpacaEval 2).

    Examples:
      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters --data valid.jsonl --by category
      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters/checkpoints --data valid.jsonl
      mlx-dpo evaluate --model ./fused --reference ./Qwen3-4B-4bit --data valid.jsonl --json
      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters --data valid.jsonl --generate 50
        --judge https://api.openai.com/v1 --judge-model gpt-4.1-mini --tasks arc_easy --task-limit 200
    """
    config = TrainConfig.from_mapping(flags)
    if (generate is None) != (judge is None):
        hint = "For example: --generate 50 --judge ./Qwen3-4B-4bit."
        raise UserError("--generate and --judge must be used together", field="generate", hint=hint)
    from mlx_dpo.evaluation.evaluation_run import EvaluationRun
    from mlx_dpo.evaluation.evaluator import find_adapters
    from mlx_dpo.reporting.phase_progress import PhaseProgress
    from mlx_dpo.sampling.completions import SamplingParams

    adapters: list[Path | None] = list(
        dict.fromkeys(adapter for path in adapter_path or () for adapter in find_adapters(path))
    )
    warn_about_training_settings(flags, ("loss", "beta", "label_smoothing"), adapters)
    evaluation = EvaluationRun(
        config,
        adapters or [None],
        by=by or [],
        judge=judge_from_options(judge, judge_model, judge_key_env, rubric) if judge else None,
        num_prompts=generate or 0,
        sampling=SamplingParams(max_tokens, temp, top_p, seed),
        tasks=[name.strip() for name in (tasks or "").split(",") if name.strip()],
        task_limit=task_limit,
    )
    evaluation.check()
    print_backend_notes()
    with PhaseProgress(stderr_console) as progress:
        summaries = evaluation.run(progress)
    if json:
        print_json(summaries[0] if len(summaries) == 1 else {"adapters": summaries})
    else:
        print_tables(evaluation_tables(summaries))
