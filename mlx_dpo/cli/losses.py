"""The command `mlx-dpo losses`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import print_json
from mlx_dpo.cli.option_values import complete_loss
from mlx_dpo.cli.tables.loss_tables import print_loss, print_losses

if TYPE_CHECKING:
    from mlx_dpo.objectives import LossFunction


def losses(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", autocompletion=complete_loss, help="A loss, or one of your own: FILE.py:NAME."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """List the losses that --loss takes, or describe one: its formula, what its rewards are, its settings.

    Examples:
      mlx-dpo losses
      mlx-dpo losses simpo
      mlx-dpo losses --json
    """
    from mlx_dpo.objectives import LOSS_FUNCTIONS, find_loss_function

    if name is not None:
        loss = find_loss_function(name)
        print_json(loss_info(loss)) if json else print_loss(loss)
    elif json:
        print_json({"losses": [loss_info(loss) for loss in LOSS_FUNCTIONS.values()]})
    else:
        print_losses(list(LOSS_FUNCTIONS.values()))


def loss_info(loss: LossFunction) -> dict[str, Any]:
    """The facts of a loss as plain values, for JSON."""
    from mlx_dpo.objectives import LOSS_ALIASES

    return {
        "name": loss.name,
        "aliases": [alias for alias, name in LOSS_ALIASES.items() if name == loss.name],
        "about": loss.summary,
        "formula": loss.formula,
        "rewards": loss.rewards.value,
        "unpaired": loss.unpaired,
        "scores": loss.needs_scores,
        "asks_margins": loss.uses_margins,
        "reference": loss.uses_reference,
        "token_kls": loss.needs_token_kls,
        "whole_batch": loss.whole_batch,
        "f_divergence": loss.supports_f_divergence and loss.uses_reference,
        "knobs": loss.settings,
        "when": loss.when_to_use,
        "paper": loss.paper,
    }
