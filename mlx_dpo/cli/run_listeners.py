"""The listeners of commands that train, and what these commands write when a run has finished."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mlx_dpo.cli.console import print_message, stderr_console
from mlx_dpo.config import TrainConfig
from mlx_dpo.export.card.model_card import write_card
from mlx_dpo.export.card.training_record import TrainingRecorder
from mlx_dpo.export.push.checkpoint_pusher import CheckpointPusher
from mlx_dpo.reporting import evaluation_records as records
from mlx_dpo.reporting.chart_images import PLOTS_FOLDER, write_chart_images
from mlx_dpo.reporting.diagnostics_listener import DiagnosticsListener
from mlx_dpo.reporting.html_report import LiveReport, write_report
from mlx_dpo.reporting.result_summary import run_summary
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.reporting.terminal_progress import TerminalProgress, print_finding
from mlx_dpo.reporting.trackers import create_trackers
from mlx_dpo.training.events import TrainResult
from mlx_dpo.training.listener import Listener, Listeners


class NotePrinter(Listener):
    """Prints notes and nothing else."""

    def on_note(self, text: str) -> None:
        """Print the note."""
        print_message(f"Note: {text}")


class RunListeners(Listeners):
    """Listeners that don't need the model, so that they can be in another process.

    Args:
        training_recorder: collects what the model card needs.
        listeners: the others.
    """

    def __init__(self, training_recorder: TrainingRecorder, *listeners: Listener) -> None:
        super().__init__(training_recorder, *listeners)
        self.training_recorder = training_recorder


def display_listeners(
    config: TrainConfig | None = None, *, live: bool = False, warnings_only: bool = False
) -> RunListeners:
    """The listeners that display a run, log it to trackers and push its checkpoints.

    Args:
        config: the run's config, for trackers and pushing.
        live: keep report.html up to date.
        warnings_only: print notes and warnings only.
    """
    listeners: list[Listener] = [DiagnosticsListener(lambda finding: print_finding(stderr_console, finding))]
    if live:
        listeners.append(LiveReport())
    if config is not None:
        listeners += create_trackers(config.report_to, print_message)
        listeners += [CheckpointPusher(config, print_message)] if config.push_checkpoints else []
    listeners.append(NotePrinter() if warnings_only else TerminalProgress(stderr_console))
    return RunListeners(TrainingRecorder(["mlx-dpo", *sys.argv[1:]]), *listeners)


def write_run_outputs(
    result: TrainResult, listeners: RunListeners, image_formats: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a finished run's model card, page and chart images.

    Returns:
        The summary of the run for JSON, without what `TrainResult` holds; empty if nothing could be written.
    """
    try:
        listeners.training_recorder.write(result)
        write_card(result.run)
        write_report(result.run)
        run = RunStatistics.read(result.run)
        write_chart_images([run], result.run / PLOTS_FOLDER, image_formats)
        records.mark_outputs_written(result.run)
    except OSError as error:  # the adapter is saved
        print_message(f"Note: the model card and the report could not be written: {error.strerror or error}.")
        return {}
    return {name: value for name, value in run_summary(run).items() if name not in ("run", "step", "steps")}
