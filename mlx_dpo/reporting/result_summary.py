"""The end of a run in the terminal: what changed, what looks wrong, and what to type next."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_dpo.reporting.changes import MetricChange, compute_changes
from mlx_dpo.reporting.diagnostics import estimate_flipped_share
from mlx_dpo.reporting.diagnostics_listener import Finding, diagnose
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.reporting.word_changes import format_interval, format_p_value, verdict
from mlx_dpo.training.listener import TrainResult


def print_result(console: Console, result: TrainResult, model: str) -> None:
    """The table of held-out numbers, the verdict, and the next commands."""
    run = RunStatistics.read(result.run)
    print_run(console, run, compute_changes(run), diagnose(run))
    if not result.after:
        console.print("Nothing was held out, so what changed was not measured: give some with --valid-data.")
    console.print(f"Done in {result.seconds:.0f} s. The adapter is in {result.run}. Next:", soft_wrap=True)
    for line in next_commands(result.run, model):
        console.print(f"  {line}", soft_wrap=True, markup=False)


def print_run(console: Console, run: RunStatistics, found: list[MetricChange], findings: list[Finding]) -> None:
    """A run's numbers with their intervals, and the verdict."""
    if found:
        console.print(held_out_table(found))
    console.print(verdict(run, found, findings), soft_wrap=True, markup=False)
    for finding in findings:
        console.print(f"  {finding.title}: {finding.sentence} Try: {finding.advice}", soft_wrap=True, markup=False)


def held_out_table(found: list[MetricChange]) -> Table:
    """Held-out numbers before and after with 95% intervals, for people."""
    table = Table(title="Held out, with 95% intervals", title_justify="left")
    table.add_column("")
    for name in ("before", "after", "p-value"):
        table.add_column(name, justify="right")
    for change in found:
        numbers = (
            format_interval(each, change.number_format).replace(" ", "\n", 1) for each in (change.before, change.after)
        )
        table.add_row(change.title, *numbers, format_p_value(change.p))
    return table


def next_commands(run: Path, model: str) -> list[str]:
    """Commands that use a run's adapter."""
    return [
        f"open {run}/report.html",
        f"mlx-dpo compare --adapter-path {run} --prompt 'Your question'",
        f"mlx-dpo fuse --adapter-path {run} --save-path {run}-fused",
        f"mlx_lm.generate --model {model} --adapter-path {run} --prompt 'Your question'",
    ]


def run_summary(run: RunStatistics) -> dict[str, Any]:
    """A run's numbers, intervals and diagnoses, for JSON."""
    found, findings, flipped = compute_changes(run), diagnose(run), estimate_flipped_share(run)
    return {
        "run": str(run.path),
        "step": run.step,
        "steps": run.steps,
        "verdict": verdict(run, found, findings),
        "held_out": [change.to_mapping() for change in found],
        "diagnoses": [finding.to_mapping() for finding in findings],
        "flipped_pairs": None if flipped is None else asdict(flipped),
    }
