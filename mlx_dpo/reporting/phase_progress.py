"""The phases of a long command on stderr: a spinner in a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console

from mlx_dpo.utils.formatting import format_duration
from mlx_dpo.utils.progress import Progress

SECONDS_BETWEEN_LINES = 10.0  # where the output is no terminal
MIN_SHARE_FOR_TIME = 0.02  # done, before the remaining time is shown


class PhaseProgress(Progress):
    """Shows a spinner with the current phase in a terminal; elsewhere prints a line as it begins, then now and then.

    Use it in a `with` block, or call `stop`.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        """Show nothing yet.

        Args:
            console: where to show it; stderr, so that a command's results are alone on stdout.
            now: returns the seconds of a monotonic clock.
        """
        self.console, self.now = console, now
        self.status = console.status("")
        self.phase, self.unit = "", ""
        self.began = self.last_line = 0.0
        self.first_done: float | None = None

    def __enter__(self) -> PhaseProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def begin(self, phase: str, unit: str = "") -> None:
        """Show a new phase; see `Progress`."""
        self.phase, self.unit = phase, unit
        self.began = self.last_line = self.now()
        self.first_done = None
        self._show(phase)

    def update(self, done: float, total: float) -> None:
        """Show how much is done; see `Progress`."""
        now = self.now()
        if self.first_done is None:  # what was done before, such as rows of an earlier run
            self.first_done, self.began = done, now
        if self.console.is_terminal or now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self._show(f"{self.phase}: {self._amount(done, total)}{self._remaining(done, total, now)}")

    def stop(self) -> None:
        """Stop the spinner."""
        self.status.stop()

    def _show(self, text: str) -> None:
        if self.console.is_terminal:
            self.status.update(text)
            self.status.start()
        else:
            self.console.print(text, soft_wrap=True, markup=False)

    def _amount(self, done: float, total: float) -> str:
        return f"{done:,.0f}/{total:,.0f} {self.unit}" if self.unit else f"{done / total:.0%}"

    def _remaining(self, done: float, total: float, now: float) -> str:
        """The remaining time, from that of what was done in this phase."""
        assert self.first_done is not None
        newly_done = done - self.first_done
        if newly_done <= MIN_SHARE_FOR_TIME * total:
            return ""
        return f", {format_duration((now - self.began) * (total - done) / newly_done)} left"
