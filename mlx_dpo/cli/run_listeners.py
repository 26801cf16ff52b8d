"""What commands that train have in common: who listens, and what is written at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mlx_dpo.cli.console import print_note, stderr_console
from mlx_dpo.config import TrainConfig
from mlx_dpo.export.card.model_card import write_card
from mlx_dpo.export.card.training_record import TrainingRecorder as TrainingRecord
from mlx_dpo.export.push.checkpoint_pusher import CheckpointPusher
from mlx_dpo.reporting.chart_images import PLOTS_FOLDER, write_chart_images
from mlx_dpo.reporting.diagnostics_listener import DiagnosticsListener
from mlx_dpo.reporting.evaluation_records import DEFAULT_NUM_SAMPLES, command_line
from mlx_dpo.reporting.html_report import LiveReport, write_report
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.reporting.result_summary import run_summary
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.reporting.terminal_progress import TerminalProgress, print_finding
from mlx_dpo.reporting.trackers import create_trackers
from mlx_dpo.training.listener import Listener, Listeners, TrainResult


class NotePrinter(Listener):
    """Says what a person should know, and nothing else."""

    def on_note(self, text: str) -> None:
        print_note(f"Note: {text}")


class RunListeners(Listeners):
    """Those that look at a run from outside of it: they need no model, and may be in another process."""

    def __init__(self, record: TrainingRecord, *others: Listener) -> None:
        super().__init__(record, *others)
        self.record = record


def display_listeners(
    config: TrainConfig | None = None, *, live: bool = False, warnings_only: bool = False
) -> RunListeners:
    """What is shown and passed on of a run."""
    told: list[Listener] = [DiagnosticsListener(lambda finding: print_finding(stderr_console, finding))]
    if live:
        told.append(LiveReport())
    if config is not None:
        told += create_trackers(config.report_to, print_note)
        told += [CheckpointPusher(config, print_note)] if config.push_checkpoints else []
    told.append(NotePrinter() if warnings_only else TerminalProgress(stderr_console))
    return RunListeners(TrainingRecord(["mlx-dpo", *sys.argv[1:]]), *told)


def recording_listeners(watching: Listener, samples: int = DEFAULT_NUM_SAMPLES) -> Listener:
    """Those that write a run's numbers down, beside the model."""
    from mlx_dpo.reporting.run_recorder import RunRecorder

    recorder = RunRecorder(
        watching.on_evaluation_recorded, watching.on_note, num_samples=samples, command=command_line()
    )
    return Listeners(MetricsLog(watching.on_note), recorder)


def write_run_outputs(result: TrainResult, watching: RunListeners, plots: Sequence[str] = ()) -> dict[str, Any]:
    """Write the card, the page and the pictures; returns what there is to say of the run beside its means."""
    try:
        watching.record.write(result)
        write_card(result.run)
        write_report(result.run)
        run = RunStatistics.read(result.run)
        write_chart_images([run], result.run / PLOTS_FOLDER, plots)
    except OSError as error:  # the adapter is saved
        print_note(f"Note: the card and the page could not be written: {error.strerror or error}.")
        return {}
    return {name: value for name, value in run_summary(run).items() if name not in ("run", "step", "steps")}
