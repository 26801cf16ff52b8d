"""What a diagnostic is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mlx_dpo.reporting.run_statistics import RunStatistics

Check = Callable[[RunStatistics], str | None]
Requirement = Literal["pairs", "samples", "train_metrics", "rollouts", "verdicts", "policy_gradient"]


@dataclass(frozen=True)
class Diagnostic:
    """A failure mode.

    Attributes:
        name: its key in JSON; keys of earlier versions stay, so some differ from the titles.
        title: its name for display.
        advice: what to try.
        check: returns a message on a run's numbers; None if they don't show the mode or there are too few.
        requires: what a run must have recorded for the check.
        reward_model_advice: what to try if the run trained a reward model; None where such a run can't show the mode.
    """

    name: str
    title: str
    advice: str
    check: Check
    requires: Requirement
    reward_model_advice: str | None

    def applies_to(self, run: RunStatistics) -> bool:
        """Whether the run has recorded what the check requires."""
        if run.is_reward_model and self.reward_model_advice is None:
            return False
        if self.requires == "pairs":  # all of these are about preferences
            return not run.is_likelihood_only and run.after is not None and run.after.is_paired
        if self.requires == "rollouts":
            return bool(run.rollout_metrics)
        if self.requires == "verdicts":
            return any("rollouts/ties" in line for line in run.rollout_metrics)
        if self.requires == "policy_gradient":
            return run.is_policy_gradient
        if self.requires == "samples":
            return len(run.samples) > 1
        return bool(run.train_metrics) and not run.is_policy_gradient  # whose loss need not fall

    def advice_for(self, run: RunStatistics) -> str:
        """What to try, given what the run trained."""
        return (self.reward_model_advice or self.advice) if run.is_reward_model else self.advice


DIAGNOSTICS: list[Diagnostic] = []  # in the order of their functions


def diagnostic(
    name: str,
    title: str,
    advice: str,
    requires: Requirement = "pairs",
    reward_model_advice: str | None = None,
) -> Callable[[Check], Check]:
    """Decorate a check to add it to `DIAGNOSTICS`; the arguments are the fields of a `Diagnostic`."""

    def register(check: Check) -> Check:
        DIAGNOSTICS.append(Diagnostic(name, title, advice, check, requires, reward_model_advice))
        return check

    return register
