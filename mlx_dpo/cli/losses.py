"""mlx-dpo losses"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_dpo.cli.console import print_json, stdout_console
from mlx_dpo.config import TrainConfig

if TYPE_CHECKING:
    from mlx_dpo.objectives import LossFunction

LEGEND = """r = log pi(y|x) - log pi_ref(y|x), the log-ratio of policy and reference, summed over the answer's tokens;
w is the chosen answer, l the rejected one; |y| is an answer's length in tokens."""


def losses(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them, or one of your own: FILE.py:NAME.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what --loss takes, or tell all of one: its formula, what its rewards mean, its knobs.

    [bold]Examples[/]

      mlx-dpo losses

      mlx-dpo losses simpo

      mlx-dpo losses --json
    """
    from mlx_dpo.objectives import LOSS_FUNCTIONS, find_loss_function

    if name is None:
        if json:
            print_json({"losses": [loss_info(one) for one in LOSS_FUNCTIONS.values()]})
        else:
            _print_all(list(LOSS_FUNCTIONS.values()))
    elif json:
        print_json(loss_info(find_loss_function(name)))
    else:
        _print_one(find_loss_function(name))


def loss_info(one: LossFunction) -> dict[str, Any]:
    """All there is to know of an objective, as plain values."""
    from mlx_dpo.objectives import LOSS_ALIASES

    return {
        "name": one.name,
        "aliases": [alias for alias, name in LOSS_ALIASES.items() if name == one.name],
        "about": one.summary,
        "formula": one.formula,
        "rewards": one.rewards.value,
        "unpaired": one.unpaired,
        "scores": one.needs_scores,
        "asks_margins": one.uses_margins,
        "reference": one.uses_reference,
        "token_kls": one.needs_token_kls,
        "whole_batch": one.whole_batch,
        "f_divergence": one.supports_f_divergence and one.uses_reference,
        "knobs": one.settings,
        "when": one.when_to_use,
        "paper": one.paper,
    }


def loss_requirements(one: LossFunction) -> str:
    """What an objective has to be given, in words."""
    data = "pairs or single answers" if one.unpaired and not one.uses_reference else "pairs or labels"
    all_needs = {
        data if one.unpaired else "pairs": True,
        "scores": one.needs_scores,
        "reference": one.uses_reference and not one.needs_token_kls,
        "reference in every step": one.needs_token_kls,
        "whole batch": one.whole_batch,
    }
    return ", ".join(need for need, there in all_needs.items() if there)


def _knobs(one: LossFunction, names: list[str]) -> str:
    return ", ".join(f"{name} {one.settings[name]:g}" for name in names)


def _print_all(objectives: list[LossFunction]) -> None:
    from rich.table import Table

    table = Table(title="Losses: mlx-dpo train --loss NAME", title_justify="left", title_style="bold", expand=True)
    table.add_column("name", no_wrap=True)
    table.add_column("needs", width=12)
    table.add_column("knobs, defaults", width=19)
    table.add_column("when to use it", ratio=1)
    table.add_column("arXiv", no_wrap=True)
    for one in objectives:
        names = "\n".join([one.name, *loss_info(one)["aliases"]])
        own = list({"beta": None, **one.keyword_defaults})
        table.add_row(names, loss_requirements(one), _knobs(one, own), one.when_to_use, one.paper.split()[0])
    stdout_console.print(table)
    for flag, is_compatible in (
        ("--f-divergence", lambda loss: loss.supports_f_divergence and loss.uses_reference),
        ("A `margin` column", lambda loss: loss.uses_margins),
        ("--ld-alpha", lambda loss: True),
        ("--use-weighting", lambda loss: loss.keeps_pair_order),
    ):
        incompatible = [loss.name for loss in objectives if not is_compatible(loss)]
        print_compatible_losses(flag, [loss.name for loss in objectives if is_compatible(loss)], incompatible)
    stdout_console.print("Sums: --loss sigmoid=0.8,bco_pair=0.2,sft=1. Formulas: mlx-dpo losses NAME.", markup=False)


def print_compatible_losses(what: str, names: list[str], without: list[str]) -> None:
    """In the fewer words of the two: what it goes with, or what it does not."""
    goes = f"{', '.join(names)}" if len(names) <= len(without) else "all" + f" but {', '.join(without)}" * bool(without)
    stdout_console.print(f"{what} goes with {goes}.", markup=False)


def _knob(name: str, value: Any, help: str | None) -> tuple[str, str]:
    """A flag and what it does; a knob of one's own objective has none, and is set where it is written."""
    return (f"--{name.replace('_', '-')}", f"{value}: {help}") if help else (name, f"{value}: as the function has it")


def _print_one(one: LossFunction) -> None:
    from rich.table import Table

    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainConfig)}
    table = Table.grid(padding=(0, 2))
    told = loss_info(one)
    rows = {
        one.name: told["about"],
        "loss": one.formula,
        "": LEGEND if one.formula else "",
        "rewards": one.rewards.value,
        "needs": loss_requirements(one),
        "when": one.when_to_use,
        "paper": f"{one.paper}; https://arxiv.org/abs/{one.paper.split()[0]}" if one.paper else "",
        **dict(_knob(name, value, helps.get(name)) for name, value in one.settings.items()),
    }
    for label, text in rows.items():
        if text:
            table.add_row(label, " ".join(text.split()))
    stdout_console.print(table, markup=False)
