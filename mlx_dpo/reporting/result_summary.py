"""The results of a run in the terminal and as JSON: what changed, the warnings, and the next commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_dpo.adapters.adapter_folder import is_reward_model
from mlx_dpo.reporting.diagnostics import estimate_flipped_share
from mlx_dpo.reporting.diagnostics_listener import diagnose
from mlx_dpo.reporting.metric_changes import MetricChange, compute_changes
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.reporting.verdict import format_interval, format_p_value, verdict
from mlx_dpo.training.events import TrainResult
from mlx_dpo.utils.formatting import format_duration, shell_command


def print_result(console: Console, result: TrainResult, model: str) -> None:
    """Print a finished run's numbers and the next commands.

    Args:
        console: where to print.
        result: what `train` returned.
        model: the model's folder or Hub id, for the commands.
    """
    print_run(console, RunStatistics.read(result.run))
    if not result.after:
        console.print("There were no held-out pairs to measure what changed. Name some with --valid-data.")
    duration = format_duration(result.seconds)
    console.print(f"Done in {duration}. The adapter is in {result.run}. Next:", soft_wrap=True, markup=False)
    for command in next_commands(result.run, model):
        console.print(f"  {command}", soft_wrap=True, markup=False)


def print_run(console: Console, run: RunStatistics) -> None:
    """Print a run's held-out metrics with their intervals, the verdict and the warnings."""
    changes, findings = compute_changes(run), diagnose(run)
    if changes:
        console.print(held_out_table(changes))
    if run.lineage:
        console.print(f"Lineage: {run.lineage}", soft_wrap=True, markup=False)
    console.print(verdict(run, changes, findings), soft_wrap=True, markup=False)
    for finding in findings:
        console.print(f"  {finding.title}: {finding.message} Try: {finding.advice}", soft_wrap=True, markup=False)


def held_out_table(changes: list[MetricChange]) -> Table:
    """A table of held-out metrics before and after, with 95% intervals."""
    table = Table("", title="Held-out metrics with 95% intervals", title_justify="left")
    for name in ("before", "after", "p-value"):
        table.add_column(name, justify="right")
    for change in changes:
        estimates = (format_interval(estimate, change.number_format) for estimate in (change.before, change.after))
        cells = (text.replace(" ", "\n", 1) for text in estimates)
        table.add_row(change.title, *cells, format_p_value(change.p))
    return table


def next_commands(run: Path, model: str) -> list[str]:
    """Shell commands that use a run's adapter."""
    if is_reward_model(run):
        return [
            shell_command("open", run / "report.html"),
            shell_command("mlx-dpo", "evaluate", "--model", model, "--adapter-path", run, "--data", "PAIRS"),
            shell_command("mlx-dpo", "score", "--model", model, "--adapter-path", run, "--data", "COMPLETIONS"),
            shell_command("mlx-dpo", "label", "COMPLETIONS", "--judge", run, "--output", "PAIRS"),
        ]
    return [
        shell_command("open", run / "report.html"),
        shell_command("mlx-dpo", "compare", "--adapter-path", run, "--prompt", "Your question"),
        shell_command("mlx-dpo", "fuse", "--adapter-path", run, "--save-path", f"{run}-fused"),
        shell_command("mlx_lm.generate", "--model", model, "--adapter-path", run, "--prompt", "Your question"),
    ]


def run_summary(run: RunStatistics) -> dict[str, Any]:
    """A run's numbers, intervals and warnings, for JSON."""
    changes, findings, flipped = compute_changes(run), diagnose(run), estimate_flipped_share(run)
    return {
        "run": str(run.path),
        "step": run.step,
        "steps": run.steps,
        "verdict": verdict(run, changes, findings),
        "held_out": [change.to_mapping() for change in changes],
        "diagnoses": [finding.to_mapping() for finding in findings],
        "lineage": run.lineage,
        "flipped_pairs": None if flipped is None else asdict(flipped),
    }
