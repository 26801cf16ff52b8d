"""The command `mlx-dpo plan`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mlx_dpo.cli.config_options import ConfigFile, JsonFlag, check_adapter_flags, with_config_options
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.config import TrainConfig
from mlx_dpo.config_files import load_config
from mlx_dpo.errors import UserError

PANEL = "Without weights"  # of --help


@with_config_options()
def plan(
    flags: dict[str, Any],
    config: ConfigFile = None,
    config_only: Annotated[
        bool,
        typer.Option(
            "--config-only",
            help="Estimate memory from the model's config.json alone; reads no weights and no data.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    length: Annotated[
        list[int] | None,
        typer.Option(
            min=6,
            help="With --config-only: estimate pairs of so many tokens; can be repeated. Default: up to --max-length.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Estimate the memory and the time that a run will take.

    Takes the options of train, reads the lengths of the pairs, and tries a few steps. Nothing is written.

    With --config-only, the model needs no weights: a folder with a config.json, or a Hub id, of which config.json and
    the index of the weights are downloaded. The activations are counted in the graph of a training step. The peak is
    an estimate: within 10% for models whose weights outweigh it, up to 40% too low for long pairs on tiny models.

    Examples:
      mlx-dpo plan --model ./Qwen3-4B-4bit --data pairs.jsonl
      mlx-dpo plan --model ./Qwen3-4B-4bit --data pairs.jsonl --memory-limit 16GB --json
      mlx-dpo plan --config-only --model mlx-community/Qwen3-8B-4bit --memory-limit 24GB --max-length 4096
    """
    resolved = load_config(config, flags)
    check_adapter_flags(resolved, flags)
    if config_only:
        _plan_from_config(resolved, length or [], json)
        return
    if length:
        raise UserError("--length is for --config-only; otherwise the lengths are those of --data", field="length")
    from mlx_dpo.reporting.plan_text import print_plan
    from mlx_dpo.reporting.terminal_progress import TerminalProgress
    from mlx_dpo.training.run_planner import estimate_run

    estimate = estimate_run(resolved, listener=TerminalProgress(stderr_console))
    if json:
        print_json(estimate.to_mapping())
    else:
        print_plan(stdout_console, estimate)


def _plan_from_config(config: TrainConfig, lengths: list[int], as_json: bool) -> None:
    from mlx_dpo.reporting.phase_progress import PhaseProgress
    from mlx_dpo.reporting.plan_text import print_config_plan
    from mlx_dpo.training.config_planner import estimate_from_config

    with PhaseProgress(stderr_console) as progress:
        progress.begin("Counting the memory of a training step")
        estimate = estimate_from_config(config, lengths)
    if as_json:
        print_json(estimate.to_mapping())
    else:
        print_config_plan(stdout_console, estimate)
