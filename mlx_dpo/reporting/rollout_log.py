"""rollouts.jsonl in the folder of an on-policy run: a line for each prompt of each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_dpo.reporting.evaluation_records import read_jsonl, to_json
from mlx_dpo.reporting.line_log import LineLog
from mlx_dpo.training.events import RunPlan
from mlx_dpo.training.run_folder import RunFolder

ROLLOUTS_FILE = "rollouts.jsonl"


class RolloutLog(LineLog):
    """Appends what was sampled and judged for each step."""

    file_name = ROLLOUTS_FILE

    def is_kept(self, line: dict[str, Any], plan: RunPlan) -> bool:
        """Whether a line of an earlier process stays: those of steps that are not repeated."""
        return bool(line["step"] <= plan.first_step)

    def to_line(self, value: dict[str, Any]) -> str:
        """A line of the file, as JSON."""
        return to_json(value)

    def on_run_start(self, plan: RunPlan) -> None:
        """Drop the lines of steps that will be repeated; an offline run gets no file."""
        if (plan.run / ROLLOUTS_FILE).exists():
            super().on_run_start(plan)
        else:
            self.folder = RunFolder(plan.run)

    def on_rollouts(self, step: int, rollouts: list[dict[str, Any]]) -> None:
        """Append the lines of a step."""
        self.append(rollouts)


def read_rollouts(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's rollouts.jsonl, without a last line that a crash cut off; none of an offline run."""
    return read_jsonl(run / ROLLOUTS_FILE)
