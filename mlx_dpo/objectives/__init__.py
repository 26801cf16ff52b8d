"""Objectives: from log-probabilities to losses. One pure function each, with its paper; none knows of a model."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import mlx.core as mx

from mlx_dpo.errors import UserError
from mlx_dpo.objectives.paired import PairedObjective, sigmoid

OBJECTIVES: dict[str, PairedObjective] = {"sigmoid": sigmoid}
ALIASES = {"dpo": "sigmoid"}


def objective(name: str) -> PairedObjective:
    """The objective of that name. Raises `UserError` naming the nearest one."""
    known = [*OBJECTIVES, *ALIASES]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"There is: {', '.join(known)}."
        raise UserError(f"no objective is called {name!r}", field="loss", hint=hint)
    return OBJECTIVES[ALIASES.get(name, name)]


@dataclass(frozen=True)
class Loss:
    """An objective with its knobs."""

    objective: PairedObjective
    beta: float
    label_smoothing: float = 0.0

    def of_pairs(self, logratios: mx.array) -> mx.array:
        """Losses, [pairs], from log-ratios of policy and reference, [2 * pairs], chosen then rejected."""
        chosen, rejected = mx.split(logratios, 2)
        return self.objective(chosen, rejected, beta=self.beta, label_smoothing=self.label_smoothing)


__all__ = ["OBJECTIVES", "Loss", "PairedObjective", "objective"]
