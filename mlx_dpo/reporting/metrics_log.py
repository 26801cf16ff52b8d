"""metrics.jsonl: one object a report and an evaluation, in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mlx_dpo.training.listener import Listener, Metrics, RunPlan
from mlx_dpo.training.run_folder import RunFolder, SaveError

METRICS_FILE = "metrics.jsonl"


class MetricsLog(Listener):
    """Appends every report and evaluation. Where a run goes on from a checkpoint, lines after it are dropped.

    What can't be written is kept, and written with the next line.
    """

    def __init__(self, notify: Callable[[str], None] = lambda text: None) -> None:
        """say: hears that lines can't be written."""
        self.notify = notify
        self.folder: RunFolder | None = None
        self.pending: list[str] = []

    def on_run_start(self, plan: RunPlan) -> None:
        self.folder = RunFolder(plan.run)
        kept = [line for line in read_metrics(plan.run) if line["step"] <= plan.first_step] if plan.first_step else []
        with suppress(SaveError):
            self.folder.write_text(METRICS_FILE, "".join(json.dumps(line) + "\n" for line in kept))

    def on_metrics(self, metrics: Metrics) -> None:
        self._add(metrics)

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        self._add(metrics)

    def on_run_end(self) -> None:
        self._write()

    def _add(self, metrics: Metrics) -> None:
        self.pending.append(json.dumps(metrics))
        could = len(self.pending) == 1
        reason = self._write()
        if reason and could:
            self.notify(f"{METRICS_FILE} can't be written: {reason}. Its lines are kept, and written with the next.")

    def _write(self) -> str | None:
        """All that waits; or why it can't be written."""
        if not self.pending or self.folder is None:
            return None
        try:
            self.folder.append_line(METRICS_FILE, "\n".join(self.pending))
        except SaveError as error:
            return str(error)
        self.pending = []
        return None


def read_metrics(run: Path) -> list[Metrics]:
    """The lines of a run's log; an unfinished last one, left by a power failure, is dropped."""
    lines = []
    with suppress(FileNotFoundError):
        for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
    return lines
