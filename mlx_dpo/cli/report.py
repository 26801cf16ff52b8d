"""The command `mlx-dpo report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import print_json, print_text, stdout_console


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are overlaid.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page. Default: report.html in the run's folder, or in the current folder for several runs.",
        ),
    ] = None,
    plots: Annotated[str | None, typer.Option(help="Also save the charts as images: png,svg,pdf.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show what training did: a page that opens offline, held-out metrics with intervals, and warnings.

    Images of the charts are saved in plots/ next to the page.

    Examples:
      mlx-dpo report adapters
      mlx-dpo report runs/a runs/b --output compared.html --plots png,svg
      mlx-dpo report adapters --json
    """
    from mlx_dpo.reporting.chart_images import PLOTS_FOLDER, parse_image_formats, write_chart_images
    from mlx_dpo.reporting.evaluation_records import write_text_atomically
    from mlx_dpo.reporting.html_report import REPORT_FILE, render_report
    from mlx_dpo.reporting.result_summary import print_run, run_summary
    from mlx_dpo.reporting.run_statistics import RunStatistics

    formats, statistics = parse_image_formats(plots), [RunStatistics.read(run) for run in runs]
    page = output or (runs[0] / REPORT_FILE if len(runs) == 1 else Path(REPORT_FILE))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(page, render_report(statistics))
    plots_folder = page.parent / PLOTS_FOLDER
    images = [str(image) for image in write_chart_images(statistics, plots_folder, formats)]
    if json:
        print_json({"page": str(page), "plots": images, "runs": [run_summary(run) for run in statistics]})
        return
    for run in statistics:
        if len(statistics) > 1:
            stdout_console.print(Text(run.name, "bold"))
        print_run(stdout_console, run)
    print_text(f"The page is {page}" + (f", images are in {plots_folder}." if images else "."))
