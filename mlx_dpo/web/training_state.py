"""What a page shows of a run: read from its folder and from the log of its process, so that any server can show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_dpo.adapters.adapter_folder import adapter_base_model
from mlx_dpo.errors import UserError
from mlx_dpo.reporting.charts import Chart, build_charts
from mlx_dpo.reporting.evaluation_records import EVALUATIONS_FILE, REPORT_FOLDER, SAMPLES_FILE
from mlx_dpo.reporting.metrics_log import METRICS_FILE
from mlx_dpo.reporting.result_summary import next_commands, run_summary
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.training.run_folder import RunFolder
from mlx_dpo.utils.formatting import shell_command
from mlx_dpo.web.background_run import BackgroundRun, RunLog


def describe_run(background: BackgroundRun) -> dict[str, Any] | None:
    """The state of the last run, with its output and what to do next; None if there was none.

    `version` differs once there are other numbers for `run_report`.

    `state` is running, finished, stopped (it can be resumed) or failed (nothing is saved).
    """
    is_running = background.is_running()  # before the log is read, so that it is complete if not
    log = background.read()
    if log is None:
        return None
    state = "running" if is_running else run_state(log.folder)
    return {
        "state": state,
        "folder": str(log.folder),
        "name": log.folder.name,
        "output": log.output,
        "command": shell_command("mlx-dpo", *log.arguments),
        "version": _version(log),
        "next_commands": _commands(log.folder) if state == "finished" else [],
    }


def run_state(folder: Path) -> str:
    """The state of a run whose process has ended."""
    run = RunFolder(folder)
    try:
        unfinished = run.unfinished_checkpoint()
    except UserError:
        return "failed"
    if unfinished is not None:
        return "stopped"
    return "finished" if run.latest_checkpoint() else "failed"


def run_report(folder: Path) -> dict[str, Any]:
    """What a run's report shows: steps, verdict, warnings, charts, and answers to held-out prompts.

    All of it is empty before the run has written its settings.
    """
    try:
        run = RunStatistics.read(folder)
    except UserError:
        return {"step": 0, "steps": None, "verdict": "", "warnings": [], "charts": [], "samples": []}
    summary = run_summary(run)
    return {
        "step": run.step,
        "steps": run.steps if run.metadata else None,
        "verdict": summary["verdict"],
        "warnings": [
            f"{warning['title']}: {warning['sentence']} {warning['advice']}" for warning in summary["diagnoses"]
        ],
        "charts": [_chart_json(chart) for chart in build_charts([run])],
        "samples": _samples(run),
    }


def _version(log: RunLog) -> str:
    files = (METRICS_FILE, f"{REPORT_FOLDER}/{EVALUATIONS_FILE}", f"{REPORT_FOLDER}/{SAMPLES_FILE}")
    paths = (log.folder / name for name in files)
    return " ".join([str(log.folder), *(str(path.stat().st_size) for path in paths if path.exists())])


def _samples(run: RunStatistics) -> list[dict[str, Any]]:
    if not run.samples:
        return []
    first, last = run.samples[0], run.samples[-1]
    afters = last.completions if last is not first else [None] * len(first.completions)
    rows = zip(first.prompts, first.completions, afters, strict=True)
    return [{"prompt": prompt, "before": before, "after": after} for prompt, before, after in rows]


def _commands(folder: Path) -> list[str]:
    commands = next_commands(folder, adapter_base_model(folder))
    return [*commands, shell_command("mlx-dpo", "push", folder, "--repo-id", "USER/NAME")]


def _chart_json(chart: Chart) -> dict[str, Any]:
    return {"name": chart.name, "title": chart.title, "description": chart.description, **chart.to_mapping()}
