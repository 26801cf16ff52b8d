"""How far a long computation has come: what computations report to, without knowing how it is shown."""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """Receives the phases of a computation and how much of each is done; by default it does nothing."""

    def begin(self, phase: str, unit: str = "") -> None:
        """A phase begins.

        Args:
            phase: what is being done, such as "Loading the model".
            unit: what `update` counts, such as "pairs"; empty where only the share matters.
        """

    def update(self, done: float, total: float) -> None:
        """Some of the phase is done.

        Args:
            done: how much.
            total: how much there is.
        """

    def counter(self, phase: str, unit: str = "") -> Callable[[float, float], None]:
        """Return `update` for a phase that begins with its first call."""
        has_begun = False

        def count(done: float, total: float) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                self.begin(phase, unit)
            self.update(done, total)

        return count


NO_PROGRESS = Progress()
