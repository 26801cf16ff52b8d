"""The command `mlx-dpo models`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.cli.tables.models_table import places_searched, print_models
from mlx_dpo.errors import UserError, Where

if TYPE_CHECKING:
    from mlx_dpo.discovery.installed_models import InstalledModel
    from mlx_dpo.training.model_fit import ModelFit


def models(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Look in these folders instead: models, or folders with models in them."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Show memory that is known from before, and estimate none.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List the models on this machine that --model takes, and which of them can be trained here.

    Looks in the Hub cache (HF_HUB_CACHE, HF_HOME) and in LM Studio's folder, whose models are called publisher/name.
    Reads no weights: whether a model fits is estimated as by `mlx-dpo plan --config-only`, with the default settings,
    in a second or more for a model that was not listed before. A model fits if a pair of 1,024 tokens does; the number
    beside it is the longest pair that surely does.

    Examples:
      mlx-dpo models
      mlx-dpo models ./my-models ./fused_model
      mlx-dpo models --quick --json
    """
    from mlx_dpo.discovery.installed_models import installed_models, models_in_folders

    for folder in folders or ():
        _require_folder(folder)
    fits = _fits(models_in_folders(folders) if folders else installed_models(), compute=not quick)
    if json:
        places = [{"place": place, "folder": str(folder)} for place, folder in places_searched(folders)]
        print_json({"models": [fit.to_mapping() for fit in fits], "searched": places, **_limits()})
    else:
        print_models(stdout_console, fits, places_searched(folders))


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        from mlx_dpo.discovery.near_names import similar_path

        problem = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise UserError(problem, where=Where(str(folder)), hint=similar_path(str(folder)) or None)


def _fits(models: list[InstalledModel], *, compute: bool) -> list[ModelFit]:
    if not models:
        return []
    from mlx_dpo.reporting.phase_progress import PhaseProgress
    from mlx_dpo.training.model_fit import model_fit, sort_fits

    with PhaseProgress(stderr_console) as progress:
        progress.begin("Estimating memory", "models")
        fits = []
        for count, model in enumerate(models):
            progress.update(count, len(models))
            fits.append(model_fit(model, compute=compute))
    return sort_fits(fits)


def _limits() -> dict[str, int]:
    from mlx_dpo.config import TrainConfig
    from mlx_dpo.training.model_fit import FIT_TOKENS
    from mlx_dpo.training.policy_setup import memory_limit

    return {"tokens": FIT_TOKENS, "limit": memory_limit(TrainConfig())}
