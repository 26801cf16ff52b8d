"""The command `mlx-dpo rounds`."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.config_options import (
    JsonFlag,
    MaxTokens,
    MinP,
    Quiet,
    Supervise,
    Temperature,
    TopP,
    with_config_options,
)
from mlx_dpo.cli.console import print_json, print_message, print_tables, print_text, stderr_console
from mlx_dpo.cli.judge_options import JudgeKeyEnv, JudgeModel, JudgeText, Rubric, judge_from_options
from mlx_dpo.cli.label import PairsToWrite
from mlx_dpo.config import TrainConfig
from mlx_dpo.errors import Interrupted

SET_HERE = {"data", "reference", "adapter_path", "tensor_parallel", "bad_rows"}  # by the rounds themselves
OPTIONS = [
    field.name
    for field in fields(TrainConfig)
    if field.name not in SET_HERE
    and not field.name.endswith("_column")
    and field.metadata["group"] not in ("Hub", "On-policy")
]
OUTPUT_DIR = Path("rounds")
ROUNDS_PANEL, LABELS_PANEL = "Rounds", "Labels"


class ReferenceOfRounds(StrEnum):
    """Values of --reference."""

    previous = "previous"
    base = "base"


@with_config_options(
    OPTIONS,
    helps={
        "init_adapter": "Adapter folder of the policy to start from.",
        "valid_data": "Held-out pairs, on which the policy of every round is measured.",
    },
)
def rounds(
    flags: dict[str, Any],
    prompts: Annotated[
        str,
        typer.Option(help="Prompts: a .txt file with one a line, or rows of any format.", rich_help_panel=ROUNDS_PANEL),
    ],
    judge: JudgeText,
    judge_model: JudgeModel = None,
    judge_key_env: JudgeKeyEnv = "OPENAI_API_KEY",
    rubric: Rubric = None,
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds.", rich_help_panel=ROUNDS_PANEL)] = 3,
    reference: Annotated[
        ReferenceOfRounds,
        typer.Option(
            help="The reference of DPO: the policy that the round starts with, or the base model.",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = ReferenceOfRounds.previous,
    eval_prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts to compare policies on. Default: some of --prompts, set aside.", rich_help_panel=ROUNDS_PANEL
        ),
    ] = None,
    num_eval_prompts: Annotated[
        int,
        typer.Option(min=1, help="How many are set aside; at most a tenth.", rich_help_panel=ROUNDS_PANEL),
    ] = 64,
    early_stop: Annotated[
        bool,
        typer.Option(
            "--early-stop/--no-early-stop",
            help="Stop when the win rate's 95% interval no longer rises.",
            rich_help_panel=ROUNDS_PANEL,
        ),
    ] = True,
    output_dir: Annotated[Path, typer.Option(help="Folder of all files.", rich_help_panel=ROUNDS_PANEL)] = OUTPUT_DIR,
    n: Annotated[int, typer.Option(min=2, help="Completions of each prompt.")] = 8,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    pairs: Annotated[
        PairsToWrite, typer.Option(help="Pairs of a prompt, as of `mlx-dpo label`.", rich_help_panel=LABELS_PANEL)
    ] = PairsToWrite.best_worst,
    margin: Annotated[
        float, typer.Option(min=0, help="Smallest difference of the scores of a pair.", rich_help_panel=LABELS_PANEL)
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option(min=1, help="Pairs per prompt with --pairs top-k.", rich_help_panel=LABELS_PANEL)
    ] = 1,
    length_control: Annotated[
        float, typer.Option(min=0, help="Score to subtract for each character.", rich_help_panel=LABELS_PANEL)
    ] = 0.0,
    drop_truncated: Annotated[
        bool,
        typer.Option(
            "--drop-truncated", help="Leave out completions that ended at --max-tokens.", rich_help_panel=LABELS_PANEL
        ),
    ] = False,
    max_calls: Annotated[
        int | None,
        typer.Option(
            min=0, help="Budget of judge calls. When it is spent, what is done is kept.", rich_help_panel=ROUNDS_PANEL
        ),
    ] = None,
    supervise: Supervise = True,
    quiet: Quiet = False,
    json: JsonFlag = False,
) -> None:
    """Iterative DPO: sample, judge, train, evaluate, and again from the policy that came of it.

    Each round samples --n completions of every prompt, has the judge make pairs of them, trains on these, and compares
    the policy with the one at the start and the one of the round before, by the judge's verdicts on the answers to the
    evaluation prompts. It stops early when the lower end of the win rate's interval no longer rises.

    Everything is in --output-dir: round-1/samples.jsonl, pairs.jsonl, adapter, evaluation.json, and so on, and
    rounds.html. The same command resumes, wherever it was interrupted; with more --rounds it adds rounds.

    Examples:
      mlx-dpo rounds --model ./Qwen3-4B-4bit --prompts prompts.txt --judge judges.py:polite --rounds 3
      mlx-dpo rounds --model ./Qwen3-4B-4bit --prompts prompts.jsonl --judge ./reward-adapter --n 4 --reference base
        --learning-rate 5e-6 --beta 0.05 --valid-data valid.jsonl --output-dir runs/rounds
    """
    from mlx_dpo.cli.round_training import RoundTrainer
    from mlx_dpo.cli.tables.rounds_table import rounds_table
    from mlx_dpo.labeling.label_settings import LabelSettings
    from mlx_dpo.reporting.phase_progress import PhaseProgress
    from mlx_dpo.rounds.rounds_config import RoundsConfig
    from mlx_dpo.rounds.rounds_page import verdict_on_rounds
    from mlx_dpo.rounds.rounds_run import train_rounds
    from mlx_dpo.sampling.completions import SamplingParams

    training = TrainConfig.from_mapping(flags)
    config = RoundsConfig(
        training,
        prompts,
        output_dir,
        rounds=rounds,
        n=n,
        reference=reference.value,
        sampling=SamplingParams(max_tokens, temperature, top_p, training.seed, min_p),
        labelling=LabelSettings("pairs", pairs.value, top_k, margin, length_control, None, drop_truncated),
        eval_prompts=eval_prompts,
        num_eval_prompts=num_eval_prompts,
        max_calls=max_calls,
        early_stop=early_stop,
    )
    loaded_judge = judge_from_options(judge, judge_model, judge_key_env, rubric)
    with PhaseProgress(stderr_console) as progress:
        try:
            trainer = RoundTrainer(progress, supervised=supervise, quiet=quiet)
            result = train_rounds(config, loaded_judge, train_round=trainer, progress=progress)
        except Interrupted as interruption:
            print_message(f"{interruption}. The same command resumes.")
            raise SystemExit(interruption.exit_code) from None
    if json:
        adapter = None if result.adapter is None else str(result.adapter)
        print_json({"output_dir": str(output_dir), "adapter": adapter, **result.to_mapping()})
        return
    print_tables([rounds_table(result.rounds, loaded_judge.name)])
    print_text(verdict_on_rounds(result))
    if result.adapter is not None:
        print_text(f"Its adapter is in {result.adapter}; the page is {result.page}.")
