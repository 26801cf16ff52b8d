"""Warnings about a run, while it trains and for its report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_dpo.reporting.diagnostics import DIAGNOSTICS
from mlx_dpo.reporting.run_statistics import RunStatistics
from mlx_dpo.training.events import Metrics, RunPlan
from mlx_dpo.training.listener import Listener


@dataclass(frozen=True)
class Finding:
    """A diagnostic that applies to a run.

    Attributes:
        diagnostic: the name of the diagnostic.
        title: its title.
        message: what the run's numbers show.
        advice: what to try.
        step: the last step that was recorded.
    """

    diagnostic: str
    title: str
    message: str
    advice: str
    step: int

    def to_mapping(self) -> dict[str, str | int]:
        """The finding as plain values, for JSON."""
        return {
            "fault": self.diagnostic,
            "title": self.title,
            "sentence": self.message,
            "advice": self.advice,
            "step": self.step,
        }


def diagnose(run: RunStatistics) -> list[Finding]:
    """Run all diagnostics on the recorded part of a run."""
    messages = [(diagnostic, diagnostic.check(run)) for diagnostic in DIAGNOSTICS if diagnostic.applies_to(run)]
    return [Finding(d.name, d.title, message, d.advice_for(run), run.step) for d, message in messages if message]


class DiagnosticsListener(Listener):
    """Reports each finding once, when it first applies. It reads the run's folder, so recorders must come before it.

    Args:
        on_finding: receives each finding.
    """

    def __init__(self, on_finding: Callable[[Finding], None]) -> None:
        self.on_finding = on_finding

    def on_run_start(self, plan: RunPlan) -> None:
        """Remember the run's folder."""
        self.run, self.reported = plan.run, set[str]()

    def on_metrics(self, metrics: Metrics) -> None:
        """Report new findings."""
        self._diagnose()

    def on_evaluation_recorded(self, reference_seconds: float, sampling_seconds: float) -> None:
        """Report new findings."""
        self._diagnose()

    def _diagnose(self) -> None:
        for finding in diagnose(RunStatistics.read(self.run)):
            if finding.diagnostic not in self.reported:
                self.reported.add(finding.diagnostic)
                self.on_finding(finding)
