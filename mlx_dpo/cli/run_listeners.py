"""What commands that train have in common: who listens, and what is written at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mlx_dpo.cli.console import notes, say
from mlx_dpo.config import TrainConfig
from mlx_dpo.export.card.model_card import write_card
from mlx_dpo.export.card.training_record import Recorder as TrainingRecord
from mlx_dpo.export.push.checkpoint_pusher import CheckpointPusher
from mlx_dpo.reporting.chart_images import FOLDER, write_pictures
from mlx_dpo.reporting.diagnostics_listener import Watch
from mlx_dpo.reporting.evaluation_records import SAMPLED, typed
from mlx_dpo.reporting.html_report import LiveReport, write_report
from mlx_dpo.reporting.metrics_log import MetricsLog
from mlx_dpo.reporting.result_summary import summary
from mlx_dpo.reporting.run_statistics import RunNumbers
from mlx_dpo.reporting.terminal_progress import TerminalProgress, tell_finding
from mlx_dpo.reporting.trackers import trackers_of
from mlx_dpo.training.listener import Listener, Listeners, TrainResult


class Notes(Listener):
    """Says what a person should know, and nothing else."""

    def note(self, text: str) -> None:
        say(f"Note: {text}")


class Watchers(Listeners):
    """Those that look at a run from outside of it: they need no model, and may be in another process."""

    def __init__(self, record: TrainingRecord, *others: Listener) -> None:
        super().__init__(record, *others)
        self.record = record


def watchers(config: TrainConfig | None = None, *, live: bool = False, quiet: bool = False) -> Watchers:
    """What is shown and passed on of a run."""
    told: list[Listener] = [Watch(lambda finding: tell_finding(notes, finding))]
    if live:
        told.append(LiveReport())
    if config is not None:
        told += trackers_of(config.report_to, say)
        told += [CheckpointPusher(config, say)] if config.push_checkpoints else []
    told.append(Notes() if quiet else TerminalProgress(notes))
    return Watchers(TrainingRecord(["mlx-dpo", *sys.argv[1:]]), *told)


def writers(watching: Listener, samples: int = SAMPLED) -> Listener:
    """Those that write a run's numbers down, beside the model."""
    from mlx_dpo.reporting.run_recorder import Recorder

    recorder = Recorder(watching.evaluated, watching.note, samples=samples, command=typed())
    return Listeners(MetricsLog(watching.note), recorder)


def finish(result: TrainResult, watching: Watchers, plots: Sequence[str] = ()) -> dict[str, Any]:
    """Write the card, the page and the pictures; returns what there is to say of the run beside its means."""
    try:
        watching.record.write(result)
        write_card(result.run)
        write_report(result.run)
        run = RunNumbers.read(result.run)
        write_pictures([run], result.run / FOLDER, plots)
    except OSError as error:  # the adapter is saved
        say(f"Note: the card and the page could not be written: {error.strerror or error}.")
        return {}
    return {name: value for name, value in summary(run).items() if name not in ("run", "step", "steps")}
