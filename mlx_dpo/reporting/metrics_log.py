"""metrics.jsonl: one object a report and an evaluation, in a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

from mlx_dpo.training.listener import Listener, Metrics, RunPlan

FILE = "metrics.jsonl"


class MetricsLog(Listener):
    """Appends every report and evaluation. Where a run goes on from a checkpoint, lines after it are dropped."""

    def begin(self, plan: RunPlan) -> None:
        self.file = plan.run / FILE
        kept = [line for line in read_metrics(plan.run) if line["step"] <= plan.first_step] if plan.first_step else []
        self.file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def report(self, metrics: Metrics) -> None:
        with self.file.open("a", encoding="utf-8") as f:
            f.write(json.dumps(metrics) + "\n")

    evaluation = report


def read_metrics(run: Path) -> list[Metrics]:
    """The lines of a run's metrics.jsonl; none where there is no such file."""
    file = run / FILE
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
