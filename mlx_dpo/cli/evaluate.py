"""mlx-dpo evaluate"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.knobs import with_knobs
from mlx_dpo.cli.output import notes, print_json, results
from mlx_dpo.config import TrainConfig

OBJECTIVE = [field.name for field in dataclasses.fields(TrainConfig) if field.metadata["group"] == "Objective"]
KNOBS = (
    "model",
    "data",
    *OBJECTIVE,
    "batch_size",
    "max_length",
    "overlong",
    "raw",
)


@with_knobs(
    KNOBS,
    data="Preference pairs: a .jsonl, .json or .jsonl.gz file, -, or a folder with valid.jsonl.",
    reference="base: the model without the adapter (the default). none. Or another model's folder.",
    batch_size="Pairs measured at a time (8).",
)
def evaluate(
    flags: dict[str, Any],
    adapter_path: Annotated[Path | None, typer.Option(help="Adapter folder to put on the model.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model, with an adapter or without, on preference pairs.

    Rewards are beta times the log-ratio of policy and reference, summed over the completion; an accuracy is the share
    of pairs whose chosen completion has the higher one. With --reference none they are of the log-probs themselves.
    `mlx-dpo losses NAME` tells of each loss what its rewards are. An adapter that was trained with --fuse-bits is
    measured as the model that `mlx-dpo fuse` makes of it, to the bit.

    [bold]Examples[/]

      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters --data valid.jsonl

      mlx-dpo evaluate --model ./fused --reference ./Qwen3-4B-4bit --data valid.jsonl --json
    """
    config = TrainConfig.from_mapping(flags)
    from mlx_dpo.training.evaluate import evaluate as run

    with notes.status("Loading") as status:
        metrics = run(
            config,
            adapter_path=adapter_path,
            progress=lambda done, pairs: status.update(f"{done:,} of {pairs:,} pairs"),
        )
    if json:
        print_json(metrics)
    else:
        results.print(_table(metrics))


def _table(metrics: dict[str, float]) -> Any:
    from rich.table import Table

    table = Table("metric", title=f"{metrics['pairs']:,} pairs", title_justify="left")
    table.add_column("mean", justify="right")
    for name, value in metrics.items():
        if name != "pairs":
            table.add_row(name, f"{value:.1%}" if name.endswith("accuracies") else f"{value:.4f}")
    return table
