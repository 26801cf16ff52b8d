"""A loss: one objective, or a weighted sum of some, with their knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.errors import UserError
from mlx_dpo.objectives.divergence import score_function
from mlx_dpo.objectives.loss_inputs import LabelledLogps, LossState, PairLogps
from mlx_dpo.objectives.loss_registry import LOSS_FUNCTIONS, find_loss_function
from mlx_dpo.objectives.objective import DIVERGENCE_DEFAULTS, LossFunction, RewardKind

LossInputs = PairLogps | LabelledLogps
LossStates = Mapping[str, LossState]  # by objective


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum of objectives.

    Attributes:
        terms: (weight, objective).
        knobs: of every objective, resolved; one value for all that share a knob.
        weighting: whether a pair counts by how likely its answers are under the policy (WPO).
        tail: what a token counts beyond the length of its pair's shorter answer (LD-DPO).
    """

    terms: tuple[tuple[float, LossFunction], ...]
    settings: Mapping[str, Any]
    use_weighting: bool = False
    ld_alpha: float = 1.0

    @classmethod
    def parse(
        cls, text: str, settings: Mapping[str, Any], *, use_weighting: bool = False, ld_alpha: float = 1.0
    ) -> WeightedLoss:
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
        _refuse_unused(text, objectives, settings)
        _refuse_divergence(objectives, settings)
        _refuse_zeros(objectives, settings)
        _refuse_weighting(objectives, use_weighting)
        defaults = {name: value for one in reversed(objectives) for name, value in one.settings.items()}
        return cls(
            terms,
            {k: v if settings.get(k) is None else settings[k] for k, v in defaults.items()},
            use_weighting,
            ld_alpha,
        )

    @property
    def loss_functions(self) -> list[LossFunction]:
        """Without their weights."""
        return [objective for _, objective in self.terms]

    @property
    def whole_batch(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its optimizer batch."""
        return any(one.whole_batch for one in self.loss_functions)

    @property
    def unpaired(self) -> bool:
        """Whether single completions do for it."""
        return all(one.unpaired for one in self.loss_functions)

    @property
    def likelihood_only(self) -> bool:
        """Whether it only makes completions likely, so that there are no rewards of single ones."""
        return self.unpaired and not any(one.reference for one in self.loss_functions)

    @property
    def needs_kl(self) -> bool:
        """Whether it asks for the batch's KL on mismatched completions."""
        return any(one.kl for one in self.loss_functions)

    @property
    def needs_token_kls(self) -> bool:
        """Whether it asks for KLs at each position."""
        return any(one.token_kls for one in self.loss_functions)

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probs are asked for, by the losses or the rewards."""
        return self._rewards is RewardKind.LOGRATIO

    @property
    def _rewards(self) -> RewardKind:
        return (
            RewardKind.LOGRATIO if any(one.reference for one in self.loss_functions) else self.loss_functions[0].rewards
        )

    def __call__(
        self, batch: LossInputs, states: LossStates | None = None, pair_weights: np.ndarray | None = None
    ) -> mx.array:
        """Losses, [pairs] or [completions]. Each objective's are in an order of its own; it is their mean that counts.

        Args:
            running: what objectives keep of the batches so far, see `updated`.
            weights: [pairs], of the pairs themselves.
        """
        parts = [weight * self._of(objective, batch, states or {}) for weight, objective in self.terms]
        losses = mx.stack(parts).sum(axis=0) if len(parts) > 1 else parts[0]
        return losses if pair_weights is None else losses * mx.array(pair_weights.astype(np.float32))

    def _of(self, objective: LossFunction, batch: LossInputs, running: LossStates) -> mx.array:
        if isinstance(batch, PairLogps) and objective.any_divergence and not objective.unpaired:
            score = score_function(self.settings["f_divergence"], self.settings["f_alpha_divergence_coef"])
            batch = replace(batch, score=score)
        seen = replace(_as_taken(objective, batch), running=running.get(objective.name, ()))
        losses = objective.function(seen, **self._arguments(objective))
        two_a_pair = isinstance(batch, PairLogps) and objective.unpaired
        return losses.reshape(2, -1).mean(axis=0) if two_a_pair else losses

    def _arguments(self, objective: LossFunction) -> dict[str, Any]:
        return {name: self.settings[name] for name in objective.keyword_defaults}

    def next_states(self, states: LossStates, batch: LossInputs) -> LossStates:
        """What objectives keep of the batches up to this one, which is a whole optimizer batch."""
        return {
            one.name: one.running(states.get(one.name, ()), _as_taken(one, batch), **self._arguments(one))
            for one in self.loss_functions
            if one.running
        }

    def losses_and_gradients(
        self, batch: LossInputs, states: LossStates | None = None, pair_weights: np.ndarray | None = None
    ) -> tuple[mx.array, dict[str, np.ndarray]]:
        """Losses, and the gradients of their sum, [2 * pairs], chosen then rejected, or [completions], float32.

        They are by the batch's `variables`: with respect to the policy's sums of log-probs, and where the batch has
        them to its plain ones, and to the KLs.
        """
        groups = batch.gradient_fields
        names = [name for group in groups.values() for name in group]
        values = [getattr(batch, name) for name in names]
        losses, slopes = mx.vjp(
            lambda *values: self(replace(batch, **dict(zip(names, values, strict=True))), states, pair_weights),
            values,
            [mx.ones(len(values[0]))],
        )
        found = dict(zip(names, slopes, strict=True))
        return losses[0], {kind: np.concatenate([np.array(found[n]) for n in group]) for kind, group in groups.items()}

    def rewards(self, logps: np.ndarray, reference: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Implicit rewards of completions, as TRL logs them for this loss; all arrays are [completions], float64."""
        log_rewards = {
            RewardKind.LOGRATIO: logps - reference,
            RewardKind.LOGP: logps,
            RewardKind.MEAN_LOGP: logps / tokens,
        }
        return self.settings["beta"] * log_rewards[self._rewards]


def _as_taken(objective: LossFunction, batch: LossInputs) -> LossInputs:
    """A batch as an objective takes it."""
    return batch.as_labelled() if objective.unpaired and isinstance(batch, PairLogps) else batch


def _term(part: str) -> tuple[float, LossFunction]:
    name, number = part.rsplit("=", 1) if "=" in part else (part, "1")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        hint = "As in --loss sigmoid=0.8,bco_pair=0.2,sft=1."
        raise UserError(f"the weight of {name!r} is {number!r}, not a number other than 0", field="loss", hint=hint)
    return weight, find_loss_function(name)


def _refuse_unused(text: str, terms: Sequence[LossFunction], given: Mapping[str, Any]) -> None:
    """A knob that has no effect is a mistake, unless it stands where a file of all knobs leaves it: at a default."""
    used = {name for one in terms for name in one.settings}
    for name, value in given.items():
        users = [one for one in LOSS_FUNCTIONS.values() if name in one.settings]
        if value is None or name in used or value in [one.settings[name] for one in users]:
            continue
        hint = f"It is used by {', '.join(one.name for one in users)}. `mlx-dpo losses` lists every loss's knobs."
        raise UserError(f"the loss {text!r} does not use it", field=name, hint=hint)


def _refuse_divergence(terms: Sequence[LossFunction], given: Mapping[str, Any]) -> None:
    divergence = given.get("f_divergence")
    deaf = [one for one in terms if not one.any_divergence]
    if divergence not in (None, "reverse_kl") and (deaf or not any(one.reference for one in terms)):
        hint = "Another divergence than reverse_kl goes with the losses that `mlx-dpo losses` lists it for."
        name = (deaf or terms)[0].name
        raise UserError(f"the loss {name!r} knows no other divergence", field="f_divergence", hint=hint)
    alpha = given.get("f_alpha_divergence_coef")
    if divergence != "alpha" and alpha not in (None, DIVERGENCE_DEFAULTS["f_alpha_divergence_coef"]):
        hint = "It goes with --f-divergence alpha."
        raise UserError("the divergence does not use it", field="f_alpha_divergence_coef", hint=hint)


def _refuse_weighting(terms: Sequence[LossFunction], weighting: bool) -> None:
    """Sorted losses have lost which pair they are of."""
    sorting = [one.name for one in terms if one.name.startswith("aot")]
    if weighting and sorting:
        hint = "Weights are of pairs, and it compares the batch's answers as two heaps."
        raise UserError(f"the loss {sorting[0]!r} can't be weighted", field="use_weighting", hint=hint)


def _refuse_zeros(terms: Sequence[LossFunction], given: Mapping[str, Any]) -> None:
    for one in terms:
        for name in one.above_zero:
            if given.get(name) == 0:
                hint = f"Leave it out for {one.settings[name]}."
                raise UserError(f"the loss {one.name!r} takes it above 0 only", field=name, hint=hint)
