"""How long a run still takes, from what its parts took so far."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_dpo.training.listener import RunPlan


class TimeEstimator:
    """Times the parts of a run: steps, evaluations, and what is not in each of them.

    Asked for the time left, it counts what is still to come of each. A reference is measured once a pair, so that later
    epochs and evaluations are quicker; samples are drawn in the first evaluation and in the last.

    Args:
        now: seconds, of a clock that does not go back.
    """

    def __init__(self, plan: RunPlan, now: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.now = plan, now
        self.last = now()
        self.done = plan.first_step
        self.steps: list[float] = []
        self.reference = self.reference_steps = 0.0
        self.evaluations: list[float] = []
        self.sampling = 0.0

    def record_step(self, step: int, reference_seconds: float) -> None:
        """An optimizer step is done; the reference took so many seconds of the run so far."""
        took, spent = self._lap(), reference_seconds - self.reference
        if step <= self.plan.steps_per_epoch:
            self.reference_steps += 1
        self.done, self.reference = step, reference_seconds
        self.steps.append(took - spent)

    def record_evaluation(self, reference_seconds: float, sampling_seconds: float) -> None:
        """An evaluation is done; held-out pairs' reference took so long in it, and the samples."""
        self.evaluations.append(self._lap() - reference_seconds - sampling_seconds)
        self.sampling = max(self.sampling, sampling_seconds)

    def remaining_seconds(self) -> float | None:
        """Seconds; None before there is a step to tell from."""
        if not self.steps:
            return None
        usual = self.steps[1:] or self.steps  # the first one warms up
        first_epoch = min(self.plan.steps, self.plan.steps_per_epoch)
        unknown = max(0, first_epoch - self.done)
        a_reference = self.reference / self.reference_steps if self.reference_steps else 0.0
        steps = (self.plan.steps - self.done) * sum(usual) / len(usual)
        return steps + unknown * a_reference + self._evaluations_left()

    def _evaluations_left(self) -> float:
        every, steps = self.plan.steps_per_eval, self.plan.steps
        if not self.evaluations or self.done >= steps:
            return 0.0
        coming = 1 + ((steps - 1) // every - self.done // every if every else 0)  # and the last
        return coming * sum(self.evaluations) / len(self.evaluations) + self.sampling

    def _lap(self) -> float:
        before, self.last = self.last, self.now()
        return self.last - before
