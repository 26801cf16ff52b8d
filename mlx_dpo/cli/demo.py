"""mlx-dpo demo"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.console import print_json, stdout_console

NUM_EXAMPLES_SHOWN = 3


def demo(
    adapter_path: Annotated[Path, typer.Option(help="Folder the run is written to.")] = Path("demo-run"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a bundled tiny model to answer politely: the main job, offline, in a minute or two.

    The model was pretrained on questions with answers in two manners, polite and curt, half and half. The pairs prefer
    the polite one. What is shown is measured on questions that neither training had.

    [bold]Example[/]

      mlx-dpo demo --adapter-path demo-run
    """
    from mlx_dpo.cli.run_listeners import display_listeners, recording_listeners, write_run_outputs
    from mlx_dpo.demo.demo_run import demo_config, run_demo
    from mlx_dpo.reporting.result_summary import print_result
    from mlx_dpo.training.listener import Listeners

    config = demo_config(str(adapter_path))
    watching = display_listeners()
    done = run_demo(config, Listeners(recording_listeners(watching), watching))
    told = write_run_outputs(done.train_result, watching)
    if json:
        print_json(
            {
                **done.train_result.to_mapping(),
                **told,
                **{f"{when}_{k}": v for when in ("before", "after") for k, v in vars(getattr(done, when)).items()},
            }
        )
        return
    stdout_console.print(_examples(done.examples[:NUM_EXAMPLES_SHOWN]))
    stdout_console.print(
        f"Sampled answers in the polite manner: {done.before.polite:.0%} before, {done.after.polite:.0%} after; "
        f"fluent and to the point: {done.before.fluent:.0%} before, {done.after.fluent:.0%} after.",
        soft_wrap=True,
    )
    print_result(stdout_console, done.train_result, config.model)


def _examples(examples: list[tuple[str, str, str]]) -> Any:
    from rich.table import Table

    table = Table("question", "before", "after", show_lines=True, title="Sampled answers", title_justify="left")
    for row in examples:
        table.add_row(*row)
    return table
