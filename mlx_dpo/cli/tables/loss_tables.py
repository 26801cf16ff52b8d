"""The tables of `mlx-dpo losses`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.table import Table

from mlx_dpo.cli.console import stdout_console
from mlx_dpo.config import TrainConfig

if TYPE_CHECKING:
    from mlx_dpo.objectives import LossFunction

LEGEND = """r = log pi(y|x) - log pi_ref(y|x), the log-ratio of policy and reference, summed over the tokens of a
completion; w is the chosen completion, l the rejected one; |y| is a completion's length in tokens."""


def loss_requirements(loss: LossFunction) -> str:
    """What a loss needs from the data and the trainer, such as "pairs, reference"."""
    unpaired_data = "pairs or labels" if loss.uses_reference else "pairs or single answers"
    data = unpaired_data if loss.unpaired else "pairs"
    requirements = {
        "prompts, scores" if loss.is_policy_gradient else data: True,
        "scores": loss.needs_scores,
        "reference": loss.uses_reference and not loss.needs_token_kls,
        "reference in every step": loss.needs_token_kls,
        "whole batch": loss.whole_batch,
    }
    return ", ".join(name for name, is_required in requirements.items() if is_required)


def print_losses(losses: list[LossFunction]) -> None:
    """Print a table of losses, and which options are compatible with which of them."""
    from mlx_dpo.objectives import DIVERGENCE_DEFAULTS, LOSS_ALIASES

    table = Table(title="Losses: mlx-dpo train --loss NAME", title_justify="left", title_style="bold", expand=True)
    table.add_column("name", no_wrap=True)
    table.add_column("needs", width=12)
    table.add_column("settings, defaults", width=19)
    table.add_column("when to use it", ratio=1)
    table.add_column("arXiv", no_wrap=True)
    for loss in losses:
        aliases = [alias for alias, name in LOSS_ALIASES.items() if name == loss.name]
        settings = {name: value for name, value in loss.settings.items() if name not in DIVERGENCE_DEFAULTS}
        defaults = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        arxiv = loss.paper.split()[0]
        table.add_row("\n".join([loss.name, *aliases]), loss_requirements(loss), defaults, loss.when_to_use, arxiv)
    stdout_console.print(table)
    print_compatible("--f-divergence", losses, [loss.supports_f_divergence and loss.uses_reference for loss in losses])
    print_compatible("A `margin` column", losses, [loss.uses_margins for loss in losses])
    print_compatible("--ld-alpha", losses, [loss.has_token_logps for loss in losses])
    print_compatible("--use-weighting", losses, [loss.has_token_logps and loss.keeps_pair_order for loss in losses])
    stdout_console.print("Sums: --loss sigmoid=0.8,bco_pair=0.2,sft=1. Formulas: mlx-dpo losses NAME.", markup=False)


def print_compatible(option: str, losses: list[LossFunction], is_compatible: list[bool]) -> None:
    """Print the losses that an option is compatible with, or the exceptions if they are fewer."""
    compatible = [loss.name for loss, compatible in zip(losses, is_compatible, strict=True) if compatible]
    exceptions = [loss.name for loss in losses if loss.name not in compatible]
    if len(compatible) <= len(exceptions):
        names = ", ".join(compatible)
    else:
        names = "all losses" + (f" except {', '.join(exceptions)}" if exceptions else "")
    stdout_console.print(f"{option} works with {names}.", markup=False)


def print_loss(loss: LossFunction) -> None:
    """Print the description of a loss."""
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainConfig)}
    rows = {
        loss.name: loss.summary,
        "loss": loss.formula,
        "": LEGEND if loss.formula else "",
        "rewards": loss.rewards.value,
        "needs": loss_requirements(loss),
        "when": loss.when_to_use,
        "paper": f"{loss.paper}; https://arxiv.org/abs/{loss.paper.split()[0]}" if loss.paper else "",
    }
    for name, default in loss.settings.items():
        if name in helps:
            rows[f"--{name.replace('_', '-')}"] = f"{default}: {helps[name]}"
        else:  # an argument of a user's own loss
            rows[name] = f"{default}: set in the function's signature"
    table = Table.grid(padding=(0, 2))
    for label, text in rows.items():
        if text:
            table.add_row(label, " ".join(text.split()))
    stdout_console.print(table, markup=False)
