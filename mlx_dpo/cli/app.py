"""The `mlx-dpo` command with its subcommands, in the order of the help."""

from __future__ import annotations

from typing import Annotated

import typer

from mlx_dpo.cli import (
    cache,
    collect,
    compare,
    data,
    demo,
    doctor,
    evaluate,
    export,
    fuse,
    import_,
    label,
    losses,
    models,
    plan,
    push,
    report,
    rounds,
    sample,
    score,
    train,
)
from mlx_dpo.cli.command_classes import AppCommand, AppGroup, LossDefaultsCommand
from mlx_dpo.cli.console import print_text

app = typer.Typer(cls=AppGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def print_version(requested: bool) -> None:
    """Print the version, and end."""
    if requested:
        from importlib.metadata import version

        print_text(f"mlx-dpo {version('mlx-dpo')}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Preference fine-tuning (DPO) of language models on the Mac they run on.

    Examples:
      mlx-dpo demo
      mlx-dpo models
      mlx-dpo train --model ./Qwen3-4B-4bit --data pairs.jsonl
      mlx-dpo train --help
    """


app.command(cls=AppCommand)(models.models)
app.command(cls=LossDefaultsCommand)(plan.plan)
app.command(cls=LossDefaultsCommand)(train.train)
app.command(cls=LossDefaultsCommand)(evaluate.evaluate)
app.command(cls=LossDefaultsCommand)(score.score)
app.command(cls=AppCommand)(sample.sample)
app.command(cls=AppCommand)(label.label)
app.command(cls=AppCommand)(collect.collect)
app.command(cls=LossDefaultsCommand)(rounds.rounds)
app.command(cls=AppCommand)(compare.compare)
app.command(cls=AppCommand)(report.report)
app.command(cls=AppCommand)(fuse.fuse)
app.command(cls=AppCommand)(export.export)
app.command("import", cls=AppCommand)(import_.import_)
app.command(cls=AppCommand)(push.push)
app.command(cls=AppCommand)(losses.losses)
app.add_typer(data.app, name="data")
app.command(cls=AppCommand)(cache.cache)
app.command(cls=AppCommand)(doctor.doctor)
app.command(cls=AppCommand)(demo.demo)
