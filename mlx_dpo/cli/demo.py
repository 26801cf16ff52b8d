"""The command `mlx-dpo demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import print_json, print_text, stdout_console
from mlx_dpo.cli.tables.completion_table import completion_table

NUM_EXAMPLES_SHOWN = 3


def demo(
    adapter_path: Annotated[Path, typer.Option(help="Folder the run is written to.")] = Path("demo-run"),
    json: JsonFlag = False,
) -> None:
    """Train a bundled tiny model to answer politely, offline, in a minute or two.

    The model was pretrained on questions with polite and curt answers, half and half. The pairs prefer the polite
    ones. Results are measured on questions that are in neither training set.

    Examples:
      mlx-dpo demo --adapter-path demo-run
    """
    from mlx_dpo.cli.run_listeners import display_listeners, write_run_outputs
    from mlx_dpo.demo.demo_run import demo_config, run_demo
    from mlx_dpo.reporting.evaluation_records import DEFAULT_NUM_SAMPLES, command_line
    from mlx_dpo.reporting.result_summary import print_result
    from mlx_dpo.reporting.run_recorder import recording_listeners
    from mlx_dpo.training.listener import Listeners

    config = demo_config(str(adapter_path))
    displays = display_listeners()
    recorders = recording_listeners(displays, DEFAULT_NUM_SAMPLES, command_line())
    result = run_demo(config, Listeners(recorders, displays))
    summary = write_run_outputs(result.train_result, displays)
    before, after = result.before, result.after
    if json:
        shares = {f"before_{name}": share for name, share in vars(before).items()}
        shares |= {f"after_{name}": share for name, share in vars(after).items()}
        print_json({**result.train_result.to_mapping(), **summary, **shares})
        return
    examples = result.examples[:NUM_EXAMPLES_SHOWN]
    stdout_console.print(completion_table(("question", "before", "after"), examples, "Sampled answers"))
    print_text(
        f"Polite answers: {before.polite:.0%} before, {after.polite:.0%} after; fluent and relevant: "
        f"{before.fluent:.0%} before, {after.fluent:.0%} after."
    )
    print_result(stdout_console, result.train_result, config.model)
