"""mlx-dpo score"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.config_options import with_config_options
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.cli.tables.metric_tables import summary_tables, warn_about_training_settings
from mlx_dpo.config import COLUMN_KNOBS, TrainConfig

OPTIONS = ("model", "data", "beta", "reference", "batch_size", "max_length", "overlong", "raw", *COLUMN_KNOBS)


@with_config_options(
    OPTIONS,
    data="Rows to score, as train takes them or a prompt with `completions`: a .jsonl, .json or .jsonl.gz file, or -.",
    reference="base: the model without the adapter (the default). none. Or another model's folder.",
    beta="Factor on the rewards. [dim]\\[default: 0.1][/]",
    batch_size="Rows that are scored, and written, together. [dim]\\[default: 8][/]",
)
def score(
    flags: dict[str, Any],
    adapter_path: Annotated[Path | None, typer.Option(help="Adapter folder to put on the model.")] = None,
    output: Annotated[Path, typer.Option(help="File to write: the rows with their rewards.")] = Path("scores.jsonl"),
    length_normalise: Annotated[
        bool, typer.Option("--length-normalise", "--length-normalize", help="Rewards per token of an answer.")
    ] = False,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="Column to sum up by, like subset; may be given several times.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Use a model as a reward model: the implicit reward of every answer in a file.

    The reward is beta times the log-ratio of policy and reference over the answer's tokens; an adapter of `train` knows
    what its pairs preferred. Every line of --output is a row as it was, with `rewards` in the order of its answers; of
    `completions` also `best`, the one of the highest reward, and `ranking`, their numbers from 0, best first. Where
    --output is there already, the same command goes on behind its last whole batch of rows.

    [bold]Examples[/]

      mlx-dpo score --model ./Qwen3-4B-4bit --adapter-path adapters --data answers.jsonl --output scores.jsonl

      mlx-dpo score --model ./Qwen3-4B-4bit --adapter-path adapters --data rewardbench.jsonl --by subset
    """
    config = TrainConfig.from_mapping(flags)
    from mlx_dpo.evaluation.implicit_rewards import score as run

    warn_about_training_settings(flags, ("beta",), [adapter_path])
    with stderr_console.status("Loading") as status:
        summary = run(
            config,
            output,
            adapter_path=adapter_path,
            length_normalise=length_normalise,
            by=by or (),
            progress=lambda done, rows: status.update(f"{done:,} of {rows:,} rows"),
        )
    if json:
        print_json({"output": str(output), **summary})
    else:
        for table in summary_tables({"": summary}):
            stdout_console.print(table)
        stdout_console.print(f"The rewards are in {output}.", soft_wrap=True, markup=False)
