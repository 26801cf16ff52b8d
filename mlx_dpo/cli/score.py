"""The command `mlx-dpo score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.backend_notes import print_backend_notes
from mlx_dpo.cli.config_options import ENCODING_SETTINGS, with_config_options
from mlx_dpo.cli.console import print_json, print_tables, print_text, stderr_console
from mlx_dpo.cli.tables.metric_tables import summary_tables, warn_about_training_settings
from mlx_dpo.config import TrainConfig

OPTIONS = ("model", "data", "beta", "reference", "batch_size", "max_length", "overlong", *ENCODING_SETTINGS)


@with_config_options(
    OPTIONS,
    helps={
        "data": "Rows, as for train or with a prompt and `completions`: a file of rows, or -.",
        "reference": "base: the model without adapter. none. Or the folder of another model.",
        "beta": "Factor on the rewards.",
        "batch_size": "Rows that are scored, and written, together.",
    },
    defaults={"reference": "base"},
)
def score(
    flags: dict[str, Any],
    adapter_path: Annotated[Path | None, typer.Option(help="Adapter folder. Default: no adapter.")] = None,
    output: Annotated[Path, typer.Option(help="File to write: the rows with their rewards.")] = Path("scores.jsonl"),
    length_normalise: Annotated[
        bool, typer.Option("--length-normalise", "--length-normalize", help="Rewards per token of a completion.")
    ] = False,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Column whose values get metrics of their own, like subset; can be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Compute the reward of every completion in a file, by a policy's log-probs or by a reward model.

    A policy's reward is beta times its log-ratio with the reference, summed over the completion's tokens: with an
    adapter of `train`, it scores what the training pairs preferred. With an adapter of `train --loss reward`, it is the
    output of that model's head; --beta, --reference and --length-normalise are then refused.

    Each line of --output is a row with its `rewards`, in the order of its completions; rows with `completions` also get
    `best`, the completion with the highest reward (best-of-n), and `ranking`, all indices, best first. If --output
    exists, the same command resumes after its last complete batch.

    Examples:
      mlx-dpo score --model ./Qwen3-4B-4bit --adapter-path adapters --data answers.jsonl --output scores.jsonl
      mlx-dpo score --model ./Qwen3-4B-4bit --adapter-path adapters --data rewardbench.jsonl --by subset
    """
    config = TrainConfig.from_mapping(flags)
    from mlx_dpo.evaluation.implicit_rewards import score as score_rows
    from mlx_dpo.reporting.phase_progress import PhaseProgress

    warn_about_training_settings(flags, ("beta",), [adapter_path])
    print_backend_notes()
    with PhaseProgress(stderr_console) as progress:
        progress.begin("Reading the rows and loading the model")
        summary = score_rows(
            config,
            output,
            adapter_path=adapter_path,
            length_normalise=length_normalise,
            by=by or (),
            progress=progress.counter("Scoring", "rows"),
            on_status=progress.begin,
        )
    if json:
        print_json({"output": str(output), **summary})
        return
    print_tables(summary_tables({"": summary}))
    print_text(f"The rewards are in {output}.")
