"""Progress within a round."""

from __future__ import annotations

from mlx_dpo.utils.progress import Progress


class RoundProgress(Progress):
    """Passes progress on, with the round before each phase.

    Args:
        progress: receives it.
        title: such as "Round 2".
    """

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title

    def begin(self, phase: str, unit: str = "") -> None:
        """A phase begins; see `Progress`."""
        self.progress.begin(f"{self.title}: {phase[:1].lower()}{phase[1:]}", unit)

    def update(self, done: float, total: float) -> None:
        """Some of the phase is done; see `Progress`."""
        self.progress.update(done, total)
