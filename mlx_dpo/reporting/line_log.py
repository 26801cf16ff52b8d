"""A JSONL file in a run's folder to which lines are appended while the run trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_dpo.reporting.evaluation_records import read_jsonl
from mlx_dpo.training.events import RunPlan
from mlx_dpo.training.listener import Listener
from mlx_dpo.training.run_folder import RunFolder, SaveError


class LineLog(Listener):
    """Appends lines to a file of the run's folder.

    When a run resumes from a checkpoint, the lines of later steps are dropped. Lines that can't be written are kept in
    memory and written together with the next ones.

    Attributes:
        file_name: of the file.
    """

    file_name: str

    def __init__(self, on_message: Callable[[str], None] = lambda text: None) -> None:
        """Create the log.

        Args:
            on_message: receives a warning when lines can't be written.
        """
        self.on_message = on_message
        self.folder: RunFolder | None = None
        self.pending: list[str] = []

    def is_kept(self, line: dict[str, Any], plan: RunPlan) -> bool:
        """Whether a line of an earlier process stays."""
        raise NotImplementedError

    def to_line(self, value: dict[str, Any]) -> str:
        """A line of the file, as JSON."""
        raise NotImplementedError

    def on_run_start(self, plan: RunPlan) -> None:
        """Drop the lines of steps that will be repeated."""
        self.folder = RunFolder(plan.run)
        kept = [line for line in read_jsonl(Path(plan.run) / self.file_name) if self.is_kept(line, plan)]
        with suppress(SaveError):
            self.folder.write_text(self.file_name, "".join(self.to_line(line) + "\n" for line in kept))

    def append(self, values: Iterable[dict[str, Any]]) -> None:
        """Append lines; if that fails, say so with the first of a row of failures."""
        is_first_failure = not self.pending
        self.pending += map(self.to_line, values)
        error = self._write_pending()
        if error and is_first_failure:
            self.on_message(
                f"{self.file_name} can't be written: {error}. Its lines are kept and written with the next."
            )

    def on_run_end(self) -> None:
        """Write the pending lines."""
        self._write_pending()

    def _write_pending(self) -> str | None:
        """Write the pending lines. Returns why that failed, or None."""
        if not self.pending or self.folder is None:
            return None
        try:
            self.folder.append_line(self.file_name, "\n".join(self.pending))
        except SaveError as error:
            return str(error)
        self.pending = []
        return None
