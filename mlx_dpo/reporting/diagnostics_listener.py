"""What looks wrong with a run, in sentences: while it trains, when it first does, and on its page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from mlx_dpo.reporting.diagnostics import DIAGNOSTICS
from mlx_dpo.reporting.run_statistics import RunStatistics
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


def diagnose(run: RunStatistics) -> list[Finding]:
    """All that looks wrong with a run as it stands."""
    found = [(fault, fault.check(run)) for fault in DIAGNOSTICS]
    return [Finding(one.name, one.title, text, one.advice, run.step) for one, text in found if text]


class DiagnosticsListener(Listener):
    """Tells of each fault when it first shows; comes after the listeners that write a run's numbers down."""

    def __init__(self, on_finding: Callable[[Finding], None]) -> None:
        self.on_finding = on_finding

    def on_run_start(self, plan: RunPlan) -> None:
        self.run, self.told = plan.run, set[str]()

    def on_metrics(self, metrics: Metrics) -> None:
        self._look()

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        self._look()

    def _look(self) -> None:
        for finding in diagnose(RunStatistics.read(self.run)):
            if finding.fault not in self.told:
                self.told.add(finding.fault)
                self.on_finding(finding)
