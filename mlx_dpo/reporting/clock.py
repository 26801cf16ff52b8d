"""How long a run still takes, from what its parts took so far."""

from __future__ import annotations

import time
from collections.abc import Callable

from mlx_dpo.training.listener import RunPlan


class Clock:
    """Times the parts of a run: steps, the reference's share of the first epoch's, evaluations.

    Asked for the time left, it counts what is still to come of each: a reference is measured once a pair, so that later
    epochs are quicker, and the evaluation after the last step draws samples as the one before the first did.

    Args:
        now: seconds, of a clock that does not go back.
    """

    def __init__(self, plan: RunPlan, now: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.now = plan, now
        self.last = now()
        self.done = plan.first_step
        self.steps: list[float] = []
        self.reference = self.reference_steps = 0.0
        self.evaluations: dict[int, float] = {}

    def step(self, step: int, reference_seconds: float) -> None:
        """An optimizer step is done; the reference took so many seconds of the run so far."""
        took, spent = self._lap(), reference_seconds - self.reference
        if step <= self.plan.steps_per_epoch:
            self.reference_steps += 1
        self.done, self.reference = step, reference_seconds
        self.steps.append(took - spent)

    def evaluated(self) -> None:
        """An evaluation is done, with all that was made of it."""
        self.evaluations[self.done] = self._lap()

    def left(self) -> float | None:
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
        if not self.evaluations or self.done >= self.plan.steps:
            return 0.0
        first = self.evaluations.get(0)
        between = [seconds for step, seconds in self.evaluations.items() if step]
        usual = sum(between) / len(between) if between else (first or 0.0)
        every, steps = self.plan.steps_per_eval, self.plan.steps
        coming = (steps - 1) // every - self.done // every if every else 0
        return coming * usual + (usual if first is None else max(first, usual))

    def _lap(self) -> float:
        before, self.last = self.last, self.now()
        return self.last - before
