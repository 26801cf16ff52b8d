"""What looks wrong with a run, in sentences: while it trains, when it first does, and on its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from mlx_dpo.reporting.diagnostics import FAULTS
from mlx_dpo.reporting.run_statistics import RunNumbers
from mlx_dpo.training.listener import Listener, Metrics, RunPlan


@dataclass(frozen=True)
class Finding:
    """A fault that a run has: what is seen, and what to try."""

    fault: str
    title: str
    sentence: str
    advice: str
    step: int

    def to_mapping(self) -> dict[str, str | int]:
        """As plain values, for JSON."""
        return asdict(self)


def diagnose(run: RunNumbers) -> list[Finding]:
    """All that looks wrong with a run as it stands."""
    found = [(fault, fault.found(run)) for fault in FAULTS]
    return [Finding(one.name, one.title, text, one.advice, run.step) for one, text in found if text]


class Watch(Listener):
    """Tells of each fault when it first shows; comes after the listeners that write a run's numbers down."""

    def __init__(self, tell: Callable[[Finding], None]) -> None:
        self.tell = tell

    def begin(self, plan: RunPlan) -> None:
        self.run, self.told = plan.run, set[str]()

    def report(self, metrics: Metrics) -> None:
        self._look()

    def evaluated(self, reference_seconds: float, sampling_seconds: float) -> None:
        self._look()

    def _look(self) -> None:
        for finding in diagnose(RunNumbers.read(self.run)):
            if finding.fault not in self.told:
                self.told.add(finding.fault)
                self.tell(finding)
