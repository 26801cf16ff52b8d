"""The loss of a run: one loss function or a weighted sum of several, with their settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.errors import UserError
from mlx_dpo.objectives.f_divergence import score_function
from mlx_dpo.objectives.loss_function import DIVERGENCE_DEFAULTS, LossFunction, Opponent, RewardKind
from mlx_dpo.objectives.loss_inputs import LabelledLogps, LossState, PairLogps
from mlx_dpo.objectives.loss_registry import LOSS_FUNCTIONS, find_loss_function

LossInputs = PairLogps | LabelledLogps
LossStates = Mapping[str, LossState]  # by the name of the loss function


@dataclass(frozen=True)
class WeightedLoss:
    """A weighted sum of loss functions.

    Attributes:
        terms: (weight, loss function).
        settings: of all loss functions, with defaults filled in; loss functions with a setting in common share it.
        use_weighting: whether pairs are weighted by how likely their completions are under the policy (WPO).
        ld_alpha: weight of tokens beyond the length of a pair's shorter completion (LD-DPO); 1: equal weights.
    """

    terms: tuple[tuple[float, LossFunction], ...]
    settings: Mapping[str, Any]
    use_weighting: bool = False
    ld_alpha: float = 1.0

    @classmethod
    def parse(
        cls, text: str, settings: Mapping[str, Any], *, use_weighting: bool = False, ld_alpha: float = 1.0
    ) -> WeightedLoss:
        """Parse `sigmoid`, `sigmoid=0.8,bco_pair=0.2,sft` (the default weight is 1) or `path/to/file.py:name`.

        Args:
            text: what `--loss` was given.
            settings: every setting that any loss has; None means the default of the first loss that has it.
            use_weighting: see the attribute.
            ld_alpha: see the attribute.

        Raises:
            UserError: a loss is unknown, a weight is not a number, or a setting is given that no loss uses.
        """
        terms = tuple(_parse_term(term.strip()) for term in text.split(","))
        functions = [function for _, function in terms]
        if len({function.name for function in functions}) < len(functions):
            raise UserError(f"{text!r} has the same loss twice", field="loss", hint="Give it one weight.")
        _refuse_unused_settings(text, functions, settings)
        _refuse_divergence(functions, settings)
        _refuse_zeros(functions, settings)
        _refuse_weighting(functions, use_weighting)
        _refuse_without_logps(functions, use_weighting, ld_alpha)
        defaults = {name: value for function in reversed(functions) for name, value in function.settings.items()}
        resolved = {k: default if settings.get(k) is None else settings[k] for k, default in defaults.items()}
        return cls(terms, resolved, use_weighting, ld_alpha)

    @property
    def loss_functions(self) -> list[LossFunction]:
        """The terms without their weights."""
        return [function for _, function in self.terms]

    @property
    def whole_batch(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its optimizer batch."""
        return any(function.whole_batch for function in self.loss_functions)

    @property
    def unpaired(self) -> bool:
        """Whether it takes single completions."""
        return all(function.unpaired for function in self.loss_functions)

    @property
    def likelihood_only(self) -> bool:
        """Whether it only raises likelihoods, so that single completions have no rewards."""
        return self.unpaired and not any(function.uses_reference for function in self.loss_functions)

    @property
    def needs_kl(self) -> bool:
        """Whether it needs the batch's KL, estimated on mismatched completions."""
        return any(function.needs_kl for function in self.loss_functions)

    @property
    def needs_token_kls(self) -> bool:
        """Whether it needs the KL at each position."""
        return any(function.needs_token_kls for function in self.loss_functions)

    @property
    def needs_kl_scores(self) -> bool:
        """Whether it needs `kl_scores`, for which the reference is run in every step."""
        return any(function.needs_kl_scores for function in self.loss_functions)

    @property
    def opponent(self) -> Opponent:
        """Who writes the other completion in on-policy training."""
        opponents = [function.opponent for function in self.loss_functions if function.opponent is not Opponent.POLICY]
        return opponents[0] if opponents else Opponent.POLICY

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or its rewards need the reference's log-probs."""
        return self._reward_kind in (RewardKind.LOGRATIO, RewardKind.SCORE)

    @property
    def policy_gradient(self) -> LossFunction | None:
        """The loss function if it is a policy gradient, which is never summed with others."""
        return next((function for function in self.loss_functions if function.is_policy_gradient), None)

    @property
    def needs_reward_head(self) -> bool:
        """Whether it trains a reward model: a scalar head, without log-probs or a reference."""
        return self._reward_kind is RewardKind.HEAD

    @property
    def _reward_kind(self) -> RewardKind:
        uses_reference = any(function.uses_reference for function in self.loss_functions)
        return RewardKind.LOGRATIO if uses_reference else self.loss_functions[0].rewards

    def __call__(
        self, inputs: LossInputs, states: LossStates | None = None, pair_weights: np.ndarray | None = None
    ) -> mx.array:
        """Compute losses. A loss over a whole batch may return them in an order of its own; only the mean counts.

        Args:
            inputs: log-probs of a batch.
            states: loss functions' states, see `next_states`.
            pair_weights: [pairs].

        Returns:
            [pairs] or [completions].
        """
        terms = [weight * self._losses(function, inputs, states or {}) for weight, function in self.terms]
        losses = mx.stack(terms).sum(axis=0) if len(terms) > 1 else terms[0]
        return losses if pair_weights is None else losses * mx.array(pair_weights.astype(np.float32))

    def _losses(self, function: LossFunction, inputs: LossInputs, states: LossStates) -> mx.array:
        """[pairs] or [completions] of one loss function."""
        if isinstance(inputs, PairLogps) and function.supports_f_divergence and not function.unpaired:
            divergence = score_function(self.settings["f_divergence"], self.settings["f_alpha_divergence_coef"])
            inputs = replace(inputs, score_function=divergence)
        converted = replace(_as_expected(function, inputs), state=states.get(function.name, ()))
        losses = function.function(converted, **self._arguments(function))
        is_two_per_pair = isinstance(inputs, PairLogps) and function.unpaired
        return losses.reshape(2, -1).mean(axis=0) if is_two_per_pair else losses

    def _arguments(self, function: LossFunction) -> dict[str, Any]:
        return {name: self.settings[name] for name in function.keyword_defaults}

    def next_states(self, states: LossStates, inputs: LossInputs) -> LossStates:
        """The states of the loss functions after a whole optimizer batch."""
        return {
            f.name: f.next_state(states.get(f.name, ()), _as_expected(f, inputs), **self._arguments(f))
            for f in self.loss_functions
            if f.next_state
        }

    def losses_and_gradients(
        self, inputs: LossInputs, states: LossStates | None = None, pair_weights: np.ndarray | None = None
    ) -> tuple[mx.array, dict[str, np.ndarray]]:
        """Compute losses, and the gradients of their sum.

        Args:
            inputs: log-probs of a batch.
            states: loss functions' states, see `next_states`.
            pair_weights: [pairs].

        Returns:
            Losses, [pairs] or [completions]; and float32 gradients of [2 * pairs], chosen then rejected, or
            [completions], by the keys of `inputs.gradient_fields`.
        """
        fields = inputs.gradient_fields
        names = [name for group in fields.values() for name in group]
        values = [getattr(inputs, name) for name in names]
        losses, gradients = mx.vjp(
            lambda *values: self(replace(inputs, **dict(zip(names, values, strict=True))), states, pair_weights),
            values,
            [mx.ones(len(values[0]))],
        )
        by_name = dict(zip(names, map(np.array, gradients), strict=True))
        return losses[0], {kind: np.concatenate([by_name[n] for n in group]) for kind, group in fields.items()}

    def rewards(self, logps: np.ndarray, reference: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Rewards as TRL logs them for this loss: implicit ones, or those of a head.

        Args:
            logps: log-probs under the policy, or the head's outputs, float64, [completions].
            reference: log-probs under the reference, float64, [completions].
            tokens: lengths, [completions].

        Returns:
            float64, [completions].
        """
        if self.needs_reward_head:
            return logps
        unscaled = {
            RewardKind.LOGRATIO: logps - reference,
            RewardKind.LOGP: logps,
            RewardKind.MEAN_LOGP: logps / tokens,
        }
        return self.settings["beta"] * unscaled[self._reward_kind]


def _as_expected(function: LossFunction, inputs: LossInputs) -> LossInputs:
    """Pairs as labelled completions if the loss function takes those."""
    return inputs.as_labelled() if function.unpaired and isinstance(inputs, PairLogps) else inputs


def _parse_term(term: str) -> tuple[float, LossFunction]:
    name, number = term.rsplit("=", 1) if "=" in term else (term, "1")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        hint = "For example --loss sigmoid=0.8,bco_pair=0.2,sft=1."
        raise UserError(f"the weight of {name!r} is {number!r}, not a number other than 0", field="loss", hint=hint)
    return weight, find_loss_function(name)


def _refuse_unused_settings(text: str, functions: Sequence[LossFunction], settings: Mapping[str, Any]) -> None:
    """Refuse a setting without effect, unless it is a default, as a saved config of another loss has it."""
    used = {name for function in functions for name in function.settings}
    for name, value in settings.items():
        users = [function for function in LOSS_FUNCTIONS.values() if name in function.settings]
        if value is None or name in used or value in [function.settings[name] for function in users]:
            continue
        hint = f"It is used by {', '.join(f.name for f in users)}. `mlx-dpo losses` lists every loss's settings."
        raise UserError(f"the loss {text!r} does not use it", field=name, hint=hint)


def _refuse_divergence(functions: Sequence[LossFunction], settings: Mapping[str, Any]) -> None:
    divergence = settings.get("f_divergence")
    unsupported = [function for function in functions if not function.supports_f_divergence]
    if divergence not in (None, "reverse_kl") and (unsupported or not any(f.uses_reference for f in functions)):
        hint = "`mlx-dpo losses` lists the losses that --f-divergence works with."
        name = (unsupported or functions)[0].name
        raise UserError(f"the loss {name!r} supports reverse_kl only", field="f_divergence", hint=hint)
    alpha = settings.get("f_alpha_divergence_coef")
    if divergence != "alpha" and alpha not in (None, DIVERGENCE_DEFAULTS["f_alpha_divergence_coef"]):
        hint = "It needs --f-divergence alpha."
        raise UserError("the divergence does not use it", field="f_alpha_divergence_coef", hint=hint)


def _refuse_weighting(functions: Sequence[LossFunction], use_weighting: bool) -> None:
    sorting = [function.name for function in functions if not function.keeps_pair_order]
    if use_weighting and sorting:
        hint = "It sorts the batch's margins, so its losses no longer belong to single pairs."
        raise UserError(f"the loss {sorting[0]!r} can't be weighted", field="use_weighting", hint=hint)


def _refuse_without_logps(functions: Sequence[LossFunction], use_weighting: bool, ld_alpha: float) -> None:
    """Refuse what needs log-probs of completions together with a loss that is not made of them."""
    alone = next((function for function in functions if not function.has_token_logps), None)
    if alone is None:
        return
    head = alone.name
    if len(functions) > 1:
        hint = "Train the reward model and the policy in two runs."
        purpose = "trains a reward head"
        if alone.is_policy_gradient:
            purpose, hint = "is a policy gradient", "Leave out the other losses."
        raise UserError(f"the loss {head!r} {purpose}, and can't be summed with others", field="loss", hint=hint)
    for field, is_set in (("use_weighting", use_weighting), ("ld_alpha", ld_alpha != 1)):
        if is_set:
            message = f"the loss {head!r} has no log-probs of tokens to weight"
            raise UserError(message, field=field, hint="Leave it out.")


def _refuse_zeros(functions: Sequence[LossFunction], settings: Mapping[str, Any]) -> None:
    for function in functions:
        for name in function.positive_settings:
            if settings.get(name) == 0:
                hint = f"Leave it out for {function.settings[name]}."
                raise UserError(f"the loss {function.name!r} needs it above 0", field=name, hint=hint)
