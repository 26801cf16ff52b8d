"""rollouts.jsonl in the folder of an on-policy run: a line for each prompt of each step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_dpo.reporting.evaluation_records import read_jsonl, to_json
from mlx_dpo.training.events import RunPlan
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run_folder import RunFolder, SaveError

ROLLOUTS_FILE = "rollouts.jsonl"


class RolloutLog(Listener):
    """Appends what was sampled and judged for each step.

    When a run resumes from a checkpoint, the lines of later steps are dropped. Lines that can't be written are kept in
    memory and written together with the next ones.

    Args:
        on_message: receives a warning when lines can't be written.
    """

    def __init__(self, on_message: Callable[[str], None] = lambda text: None) -> None:
        self.on_message = on_message
        self.folder: RunFolder | None = None
        self.pending: list[str] = []
        self.warned = False

    def on_run_start(self, plan: RunPlan) -> None:
        """Drop the lines of steps that will be repeated."""
        self.folder = RunFolder(plan.run)
        file = plan.run / ROLLOUTS_FILE
        if file.exists():
            kept = [line for line in read_jsonl(file) if line["step"] <= plan.first_step]
            with suppress(SaveError):
                self.folder.write_text(ROLLOUTS_FILE, "".join(to_json(line) + "\n" for line in kept))

    def on_rollouts(self, step: int, rollouts: list[dict[str, Any]]) -> None:
        """Append the lines of a step."""
        self.pending += map(to_json, rollouts)
        self._write_pending()

    def on_run_end(self) -> None:
        """Write the pending lines."""
        self._write_pending()

    def _write_pending(self) -> None:
        if not self.pending or self.folder is None:
            return
        try:
            self.folder.append_line(ROLLOUTS_FILE, "\n".join(self.pending))
        except SaveError as error:
            if not self.warned:
                self.on_message(f"{ROLLOUTS_FILE} can't be written: {error}. Its lines are written with the next ones.")
            self.warned = True
        else:
            self.pending = []


def read_rollouts(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's rollouts.jsonl, without a last line that a crash cut off; none of an offline run."""
    return read_jsonl(run / ROLLOUTS_FILE)
