"""mlx-dpo report"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlx_dpo.cli.console import print_json, stdout_console


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that train wrote; several are overlaid.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page. Default: report.html in the run's folder, or here of several."),
    ] = None,
    plots: Annotated[str | None, typer.Option(help="Draw the charts as pictures too: png,svg,pdf.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what training did: a page that opens offline, numbers with their intervals, and what looks wrong.

    Pictures go into plots/ beside the page, one a chart.

    [bold]Examples[/]

      mlx-dpo report adapters

      mlx-dpo report runs/a runs/b --output compared.html --plots png,svg

      mlx-dpo report adapters --json
    """
    from mlx_dpo.reporting.changes import compute_changes
    from mlx_dpo.reporting.chart_images import PLOTS_FOLDER, parse_image_formats, write_chart_images
    from mlx_dpo.reporting.diagnostics_listener import diagnose
    from mlx_dpo.reporting.evaluation_records import write_whole
    from mlx_dpo.reporting.html_report import REPORT_FILE, render_report
    from mlx_dpo.reporting.result_summary import print_run, run_summary
    from mlx_dpo.reporting.run_statistics import RunStatistics

    kinds, read = parse_image_formats(plots), [RunStatistics.read(run) for run in runs]
    file = output or (runs[0] / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, render_report(read))
    pictures = [str(picture) for picture in write_chart_images(read, file.parent / PLOTS_FOLDER, kinds)]
    if json:
        print_json({"page": str(file), "plots": pictures, "runs": [run_summary(run) for run in read]})
        return
    for run in read:
        if len(read) > 1:
            stdout_console.print(f"[bold]{run.name}[/]")
        print_run(stdout_console, run, compute_changes(run), diagnose(run))
    stdout_console.print(
        f"The page is {file}" + (f", pictures are in {file.parent / PLOTS_FOLDER}." if pictures else ".")
    )
