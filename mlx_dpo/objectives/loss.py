"""A loss: one objective, or a weighted sum of some, with their knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.errors import UserError
from mlx_dpo.objectives.divergence import scores
from mlx_dpo.objectives.objective import DIVERGENCE, Objective, Rewards
from mlx_dpo.objectives.pairs import PairLogps
from mlx_dpo.objectives.registry import OBJECTIVES, find


@dataclass(frozen=True)
class Loss:
    """A weighted sum of objectives.

    Attributes:
        terms: (weight, objective).
        knobs: of every objective, resolved; one value for all that share a knob.
    """

    terms: tuple[tuple[float, Objective], ...]
    knobs: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, given: Mapping[str, Any]) -> Loss:
        """From `sigmoid`, `sigmoid=0.8,bco_pair=0.2,sft` (a weight left out is 1), or `path/to/file.py:name`.

        Args:
            given: all knobs there are; one that is None takes the default of the first objective that has it.

        Raises:
            UserError: an objective is not known, a weight is not a number, or a knob is given that none uses.
        """
        terms = tuple(_term(part.strip()) for part in text.split(","))
        names = [objective.name for _, objective in terms]
        if len(set(names)) < len(names):
            raise UserError(f"an objective stands twice in {text!r}", field="loss", hint="Give it one weight.")
        objectives = [objective for _, objective in terms]
        _refuse_unused(text, objectives, given)
        _refuse_divergence(objectives, given)
        _refuse_zeros(objectives, given)
        defaults = {name: value for one in reversed(objectives) for name, value in one.knobs.items()}
        return cls(terms, {k: v if given.get(k) is None else given[k] for k, v in defaults.items()})

    @property
    def whole_batch(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its optimizer batch."""
        return any(objective.whole_batch for _, objective in self.terms)

    @property
    def reference(self) -> bool:
        """Whether the reference's log-probs are asked for, by the losses or the rewards."""
        return self._rewards is Rewards.LOGRATIO

    @property
    def _rewards(self) -> Rewards:
        objectives = [objective for _, objective in self.terms]
        return Rewards.LOGRATIO if any(one.reference for one in objectives) else objectives[0].rewards

    def __call__(self, pairs: PairLogps) -> mx.array:
        """Losses, [pairs]. Each objective's are in an order of its own; it is their mean that counts."""
        parts = [weight * self._of(objective, pairs) for weight, objective in self.terms]
        return mx.stack(parts).sum(axis=0) if len(parts) > 1 else parts[0]

    def _of(self, objective: Objective, pairs: PairLogps) -> mx.array:
        if objective.any_divergence:
            score = scores(self.knobs["f_divergence_type"], self.knobs["f_alpha_divergence_coef"])
            pairs = replace(pairs, score=score)
        return objective.losses(pairs, **{name: self.knobs[name] for name in objective.arguments})

    def with_slopes(self, pairs: PairLogps) -> tuple[mx.array, np.ndarray]:
        """Losses, [pairs], and the gradient of their sum with respect to the policy's log-probs, [2 * pairs]."""
        chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
        losses, slopes = mx.vjp(
            lambda chosen, rejected: self(pairs.with_logratios(chosen, rejected)),
            [chosen, rejected],
            [mx.ones(len(chosen))],
        )
        return losses[0], np.concatenate([np.array(side) for side in slopes])

    def rewards(self, logps: np.ndarray, reference: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Implicit rewards of completions, as TRL logs them for this loss; all arrays are [completions], float64."""
        log_rewards = {
            Rewards.LOGRATIO: logps - reference,
            Rewards.LOGP: logps,
            Rewards.MEAN_LOGP: logps / tokens,
        }
        return self.knobs["beta"] * log_rewards[self._rewards]


def _term(part: str) -> tuple[float, Objective]:
    name, number = part.rsplit("=", 1) if "=" in part else (part, "1")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        hint = "As in --loss sigmoid=0.8,bco_pair=0.2,sft=1."
        raise UserError(f"the weight of {name!r} is {number!r}, not a number other than 0", field="loss", hint=hint)
    return weight, find(name)


def _refuse_unused(text: str, terms: Sequence[Objective], given: Mapping[str, Any]) -> None:
    """A knob that has no effect is a mistake, unless it stands where a file of all knobs leaves it: at a default."""
    used = {name for one in terms for name in one.knobs}
    for name, value in given.items():
        users = [one for one in OBJECTIVES.values() if name in one.knobs]
        if value is None or name in used or value in [one.knobs[name] for one in users]:
            continue
        hint = f"It is used by {', '.join(one.name for one in users)}. `mlx-dpo losses` lists every loss's knobs."
        raise UserError(f"the loss {text!r} does not use it", field=name, hint=hint)


def _refuse_divergence(terms: Sequence[Objective], given: Mapping[str, Any]) -> None:
    divergence = given.get("f_divergence_type")
    deaf = [one for one in terms if not one.any_divergence]
    if divergence not in (None, "reverse_kl") and (deaf or not any(one.reference for one in terms)):
        hint = "Another divergence than reverse_kl goes with the losses that `mlx-dpo losses` lists it for."
        name = (deaf or terms)[0].name
        raise UserError(f"the loss {name!r} knows no other divergence", field="f_divergence_type", hint=hint)
    alpha = given.get("f_alpha_divergence_coef")
    if divergence != "alpha_divergence" and alpha not in (None, DIVERGENCE["f_alpha_divergence_coef"]):
        hint = "It goes with --f-divergence-type alpha_divergence."
        raise UserError("the divergence does not use it", field="f_alpha_divergence_coef", hint=hint)


def _refuse_zeros(terms: Sequence[Objective], given: Mapping[str, Any]) -> None:
    for one in terms:
        for name in one.above_zero:
            if given.get(name) == 0:
                hint = f"Leave it out for {one.knobs[name]}."
                raise UserError(f"the loss {one.name!r} takes it above 0 only", field=name, hint=hint)
