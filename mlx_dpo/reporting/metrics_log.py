"""metrics.jsonl in a run's folder: a line per report and per evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlx_dpo.reporting.evaluation_records import read_jsonl
from mlx_dpo.training.events import Metrics, RunPlan
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run_folder import RunFolder, SaveError

METRICS_FILE = "metrics.jsonl"


class MetricsLog(Listener):
    """Appends a line per report and per evaluation.

    When a run resumes from a checkpoint, the lines of later steps are dropped. Lines that can't be written are kept
    in memory and written together with the next one.

    Args:
        on_message: receives a warning when lines can't be written.
    """

    def __init__(self, on_message: Callable[[str], None] = lambda text: None) -> None:
        self.on_message = on_message
        self.folder: RunFolder | None = None
        self.pending: list[str] = []

    def on_run_start(self, plan: RunPlan) -> None:
        """Drop the lines of steps that will be repeated."""
        self.folder = RunFolder(plan.run)
        kept = [line for line in read_metrics(plan.run) if _is_kept(line, plan)]
        with suppress(SaveError):
            self.folder.write_text(METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept))

    def on_metrics(self, metrics: Metrics) -> None:
        """Append a line."""
        self._append(metrics)

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        """Append a line."""
        self._append(metrics)

    def on_run_end(self) -> None:
        """Write the pending lines."""
        self._write_pending()

    def _append(self, metrics: Metrics) -> None:
        self.pending.append(json.dumps(metrics))
        is_first_failure = len(self.pending) == 1
        error = self._write_pending()
        if error and is_first_failure:
            self.on_message(f"{METRICS_FILE} can't be written: {error}. Its lines are kept and written with the next.")

    def _write_pending(self) -> str | None:
        """Write the pending lines. Returns why that failed, or None."""
        if not self.pending or self.folder is None:
            return None
        try:
            self.folder.append_line(METRICS_FILE, "\n".join(self.pending))
        except SaveError as error:
            return str(error)
        self.pending = []
        return None


def _is_kept(line: Metrics, plan: RunPlan) -> bool:
    """Whether a line of an earlier process stays."""
    if line["step"] == plan.first_step > 0:
        return not (plan.evaluates_first and any(name.startswith("eval_") for name in line))
    return bool(line["step"] < plan.first_step)


def read_metrics(run: Path) -> list[Metrics]:
    """The lines of a run's metrics.jsonl, without a last line that a crash cut off."""
    return read_jsonl(run / METRICS_FILE)
