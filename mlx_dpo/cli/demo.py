"""mlx-dpo demo"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlx_dpo.cli.output import notes, print_json, results

SHOWN = 3


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
    from mlx_dpo.demo.run import demo_config, run_demo
    from mlx_dpo.export.card import write_card
    from mlx_dpo.export.record import Recorder
    from mlx_dpo.reporting.metrics_log import MetricsLog
    from mlx_dpo.reporting.page import write_report
    from mlx_dpo.reporting.progress import TerminalProgress, show_result
    from mlx_dpo.training.listener import Listeners

    config = demo_config(str(adapter_path))
    recorder = Recorder(["mlx-dpo", *sys.argv[1:]])
    done = run_demo(config, Listeners(MetricsLog(), TerminalProgress(notes), recorder))
    recorder.write(done.trained)
    write_card(done.trained.run)
    write_report(done.trained.run)
    if json:
        print_json(
            {
                **done.trained.to_mapping(),
                **{f"{when}_{k}": v for when in ("before", "after") for k, v in vars(getattr(done, when)).items()},
            }
        )
        return
    results.print(_examples(done.examples[:SHOWN]))
    results.print(
        f"Sampled answers in the polite manner: {done.before.polite:.0%} before, {done.after.polite:.0%} after; "
        f"fluent and to the point: {done.before.fluent:.0%} before, {done.after.fluent:.0%} after.",
        soft_wrap=True,
    )
    show_result(results, done.trained, config.model)


def _examples(examples: list[tuple[str, str, str]]) -> Any:
    from rich.table import Table

    table = Table("question", "before", "after", show_lines=True, title="Sampled answers", title_justify="left")
    for row in examples:
        table.add_row(*row)
    return table
