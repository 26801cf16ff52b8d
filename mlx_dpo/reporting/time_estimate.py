"""Estimate the remaining time of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_dpo.training.events import RunPlan


class TimeEstimator:
    """Estimates the remaining time from how long the steps and evaluations of a run have taken.

    The reference of an example is computed once, in the first epoch or the first evaluation, so its time is counted
    separately. Completions are sampled in the first and the last evaluation.

    Args:
        plan: the run.
        now: returns the seconds of a monotonic clock.
    """

    def __init__(self, plan: RunPlan, now: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.now = plan, now
        self.last_time = now()
        self.steps_done = plan.first_step
        self.step_seconds: list[float] = []
        self.reference_seconds = 0.0
        self.reference_steps = 0
        self.evaluation_seconds: list[float] = []
        self.sampling_seconds = 0.0

    def record_step(self, step: int, reference_seconds: float) -> None:
        """Record a finished optimizer step.

        Args:
            step: its number.
            reference_seconds: total seconds that the reference has taken in steps so far.
        """
        reference = reference_seconds - self.reference_seconds
        if step <= self.plan.steps_per_epoch:
            self.reference_steps += 1
        self.steps_done, self.reference_seconds = step, reference_seconds
        self.step_seconds.append(self._elapsed() - reference)

    def record_evaluation(self, reference_seconds: float, sampling_seconds: float) -> None:
        """Record a finished evaluation, and the seconds that the reference and sampling took in it."""
        self.evaluation_seconds.append(self._elapsed() - reference_seconds - sampling_seconds)
        self.sampling_seconds = max(self.sampling_seconds, sampling_seconds)

    def remaining_seconds(self) -> float | None:
        """The estimate; None before the first step is done."""
        if not self.step_seconds:
            return None
        after_warmup = self.step_seconds[1:] or self.step_seconds
        first_epoch = min(self.plan.steps, self.plan.steps_per_epoch)
        steps_with_reference = max(0, first_epoch - self.steps_done)
        per_reference = self.reference_seconds / self.reference_steps if self.reference_steps else 0.0
        steps = (self.plan.steps - self.steps_done) * sum(after_warmup) / len(after_warmup)
        return steps + steps_with_reference * per_reference + self._remaining_evaluations()

    def _remaining_evaluations(self) -> float:
        interval, steps = self.plan.steps_per_eval, self.plan.steps
        if not self.evaluation_seconds or self.steps_done >= steps:
            return 0.0
        count = 1 + ((steps - 1) // interval - self.steps_done // interval if interval else 0)  # the last included
        return count * sum(self.evaluation_seconds) / len(self.evaluation_seconds) + self.sampling_seconds

    def _elapsed(self) -> float:
        previous, self.last_time = self.last_time, self.now()
        return self.last_time - previous
