"""The `mlx-dpo` command with its subcommands, in the order of the help."""

from __future__ import annotations

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
    plan,
    push,
    report,
    rounds,
    sample,
    score,
    train,
)
from mlx_dpo.cli.config_options import LossDefaultsCommand

app = typer.Typer(
    help="Preference fine-tuning (DPO) of language models on the Mac they run on.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(cls=LossDefaultsCommand)(plan.plan)
app.command(cls=LossDefaultsCommand)(train.train)
app.command(cls=LossDefaultsCommand)(evaluate.evaluate)
app.command(cls=LossDefaultsCommand)(score.score)
app.command()(sample.sample)
app.command()(label.label)
app.command()(collect.collect)
app.command(cls=LossDefaultsCommand)(rounds.rounds)
app.command()(compare.compare)
app.command()(report.report)
app.command()(fuse.fuse)
app.command()(export.export)
app.command("import")(import_.import_)
app.command()(push.push)
app.command()(losses.losses)
app.add_typer(data.app, name="data")
app.command()(cache.cache)
app.command()(doctor.doctor)
app.command()(demo.demo)
