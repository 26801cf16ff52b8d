"""metrics.jsonl in a run's folder: a line per report and per evaluation."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_dpo.reporting.evaluation_records import read_jsonl
from mlx_dpo.reporting.line_log import LineLog
from mlx_dpo.training.events import Metrics, RunPlan

METRICS_FILE = "metrics.jsonl"


class MetricsLog(LineLog):
    """Appends a line per report and per evaluation."""

    file_name = METRICS_FILE

    def is_kept(self, line: Metrics, plan: RunPlan) -> bool:
        """Whether a line of an earlier process stays: those before the first step, and an evaluation at it."""
        if line["step"] == plan.first_step > 0:
            return not (plan.evaluates_first and any(name.startswith("eval_") for name in line))
        return bool(line["step"] < plan.first_step)

    def to_line(self, value: Metrics) -> str:
        """A line of the file, as JSON."""
        return json.dumps(value)

    def on_metrics(self, metrics: Metrics) -> None:
        """Append a line."""
        self.append([metrics])

    def on_evaluation_metrics(self, metrics: Metrics) -> None:
        """Append a line."""
        self.append([metrics])


def read_metrics(run: Path) -> list[Metrics]:
    """The lines of a run's metrics.jsonl, without a last line that a crash cut off."""
    return read_jsonl(run / METRICS_FILE)
