"""The command `mlx-dpo plan`."""

from __future__ import annotations

from typing import Any

from mlx_dpo.cli.config_options import ConfigFile, JsonFlag, check_adapter_flags, with_config_options
from mlx_dpo.cli.console import print_json, stderr_console, stdout_console
from mlx_dpo.config_files import load_config


@with_config_options()
def plan(flags: dict[str, Any], config: ConfigFile = None, json: JsonFlag = False) -> None:
    """Estimate the memory and the time that a run will take.

    Takes the options of train, reads the lengths of the pairs, and tries a few steps. Nothing is written.

    [bold]Examples[/]

      mlx-dpo plan --model ./Qwen3-4B-4bit --data pairs.jsonl

      mlx-dpo plan --model ./Qwen3-4B-4bit --data pairs.jsonl --memory-limit 16GB --json
    """
    resolved = load_config(config, flags)
    check_adapter_flags(resolved, flags)
    from mlx_dpo.reporting.plan_text import print_plan
    from mlx_dpo.reporting.terminal_progress import TerminalProgress
    from mlx_dpo.training.run_planner import estimate_run

    estimate = estimate_run(resolved, listener=TerminalProgress(stderr_console))
    if json:
        print_json(estimate.to_mapping())
    else:
        print_plan(stdout_console, estimate)
