"""mlx-dpo evaluate"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.knobs import with_knobs
from mlx_dpo.cli.measured import comparison_table, summary_tables
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
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model, with an adapter or without, on preference pairs.

    Rewards are beta times the log-ratio of policy and reference, summed over the completion; an accuracy is the share
    of pairs whose chosen completion has the higher one. With --reference none they are of the log-probs themselves.
    `mlx-dpo losses NAME` tells of each loss what its rewards are. Intervals hold the mean of all such pairs with 95%
    certainty; pairs of the same row count as one draw. Of several adapters, each is compared with the first, pair by
    pair.

    [bold]Examples[/]

      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters --data valid.jsonl --by category

      mlx-dpo evaluate --model ./Qwen3-4B-4bit --adapter-path adapters/checkpoints --data valid.jsonl

      mlx-dpo evaluate --model ./fused --reference ./Qwen3-4B-4bit --data valid.jsonl --json
    """
    config = TrainConfig.from_mapping(flags)
    from mlx_dpo.training.evaluate import Evaluation, adapters_in
    from mlx_dpo.training.measured import compared

    adapters: list[Path | None] = [adapter for path in adapter_path or () for adapter in adapters_in(path)]
    adapters = adapters or [None]
    with notes.status("Loading") as status:
        evaluation = Evaluation(config, by=by or ())
        measured = [
            evaluation.measure(adapter, progress=lambda done, pairs: status.update(f"{done:,} of {pairs:,} pairs"))
            for adapter in adapters
        ]
    summaries = [one.summary for one in measured]
    against_first = [compared(measured[0], one) for one in measured[1:]]
    if len(adapters) == 1:
        print_json(summaries[0]) if json else _print(summary_tables({"": summaries[0]}))
        return
    names = [str(adapter) for adapter in adapters]
    if json:
        against = [{}, *({"against_first": one} for one in against_first)]
        told = zip(names, summaries, against, strict=True)
        print_json({"adapters": [{"adapter": name, **summary, **more} for name, summary, more in told]})
    else:
        _print(summary_tables(dict(zip(names, summaries, strict=True))))
        results.print(comparison_table(names[0], dict(zip(names[1:], against_first, strict=True))))


def _print(tables: Any) -> None:
    for table in tables:
        results.print(table)
