"""mlx-dpo plan"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.config_options import with_config_options
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.config import config_from


@with_config_options()
def plan(
    flags: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="YAML file of knobs; flags win over it.", rich_help_panel="Run"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel="Run")] = False,
) -> None:
    """Say what a run will take: memory, time, and how the pairs go through the model.

    Takes the flags of train, reads the lengths of the pairs, and tries a few steps. Nothing is trained or written.

    [bold]Examples[/]

      mlx-dpo plan --model ./Qwen3-4B-4bit --data pairs.jsonl

      mlx-dpo plan --model ./Qwen3-4B-4bit --data pairs.jsonl --memory-limit 16GB --json
    """
    from mlx_dpo.reporting.plan_text import print_plan
    from mlx_dpo.reporting.terminal_progress import TerminalProgress
    from mlx_dpo.training.run_planner import estimate_run as measure

    measured = measure(config_from(config, flags), listener=TerminalProgress(stderr_console))
    if json:
        print_json(measured.to_mapping())
    else:
        print_plan(stdout_console, measured)
