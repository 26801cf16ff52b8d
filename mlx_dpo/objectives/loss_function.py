"""A loss function and the facts that the trainer needs to know about it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import mlx.core as mx

from mlx_dpo.objectives.loss_inputs import LossState

# Settings that are not in a signature: implicit rewards are scaled by beta whatever the loss is.
DEFAULT_BETA = 0.1
DIVERGENCE_DEFAULTS = {"f_divergence": "reverse_kl", "f_alpha_divergence_coef": 0.5}
ATTRIBUTE = "mlx_dpo_loss"  # where a decorated function keeps its `LossFunction`


class RewardKind(Enum):
    """What a completion's reward is under a loss, as TRL logs it; the values are printed."""

    LOGRATIO = "beta * (log pi(y|x) - log pi_ref(y|x)), summed over the completion's tokens"
    LOGP = "beta * log pi(y|x), summed over the completion's tokens"
    MEAN_LOGP = "beta * log pi(y|x) / |y|, the mean over the completion's tokens"
    HEAD = "the output of a scalar head at the completion's last token"
    SCORE = "the score of a reward model or a judge, less kl_coef * (log pi - log pi_ref)"


class Opponent(Enum):
    """Who writes the completion that the policy's own is compared with, when training on the policy's own answers."""

    POLICY = "the policy itself"
    REFERENCE = "the reference"
    MIXTURE = "a mixture of policy and reference"
    NONE = "nobody: the score of a completion counts"


@dataclass(frozen=True)
class LossFunction:
    """A loss and its facts.

    Attributes:
        function: takes `PairLogps` ([pairs]), or `LabelledLogps` ([completions]) where `unpaired`, and the loss's
            settings by keyword, with their defaults; returns losses, [pairs] or [completions].
        rewards: what the logged rewards are.
        uses_reference: whether the loss is made of the reference's log-probs (its rewards can be even if not).
        whole_batch: whether a pair's loss depends on the other pairs of its optimizer batch.
        keeps_pair_order: whether losses[i] is the loss of pair i, so that pairs can be weighted.
        supports_f_divergence: whether it is also defined for other f-divergences (`PairLogps.score_function`).
        positive_settings: settings that can't be 0 for this loss, although they can for others.
        unpaired: whether it takes single completions; a pair is then two of them.
        needs_kl: whether it needs the batch's KL, estimated on mismatched completions.
        needs_token_kls: whether it needs the KL of whole distributions at each position, for which the reference is
            run in every step.
        needs_kl_scores: whether it needs `kl_scores`, for which the reference is run in every step.
        needs_scores: whether it needs the rows' scores.
        uses_margins: whether it respects the rows' `margin` column (`PairLogps.reward_margins`).
        next_state: called as (state, inputs, **settings) with the state after earlier batches (empty at first) and a
            whole optimizer batch; returns the state that the loss of this batch sees. None: it keeps no state.
        opponent: who writes the other completion in on-policy training; a loss for which that is not the policy itself
            is defined for on-policy training only.
        advantages: of a policy gradient, makes (advantages, returns), [completions, tokens], of `SampledRewards`, with
            settings of its own by keyword; `function` then takes `SampledTokens` and returns [completions].
        statistics: of a policy gradient, takes the arguments of `function`; returns metrics by name, [completions].
        needs_value_head: whether values of states are learned, by a head on the policy's body.
    """

    function: Callable[..., mx.array]
    rewards: RewardKind = RewardKind.LOGRATIO
    uses_reference: bool = True
    whole_batch: bool = False
    keeps_pair_order: bool = True
    supports_f_divergence: bool = False
    positive_settings: tuple[str, ...] = ()
    unpaired: bool = False
    needs_kl: bool = False
    needs_token_kls: bool = False
    needs_kl_scores: bool = False
    needs_scores: bool = False
    uses_margins: bool = False
    next_state: Callable[..., LossState] | None = None
    opponent: Opponent = Opponent.POLICY
    advantages: Callable[..., tuple[mx.array, mx.array]] | None = None
    statistics: Callable[..., dict[str, mx.array]] | None = None
    needs_value_head: bool = False

    @property
    def name(self) -> str:
        """The name that `--loss` takes."""
        return self.function.__name__

    @cached_property
    def keyword_defaults(self) -> dict[str, Any]:
        """The settings in the function's signature, with their defaults."""
        return _keyword_defaults(self.function)

    @cached_property
    def advantage_defaults(self) -> dict[str, Any]:
        """The settings in the signature of `advantages`, with their defaults."""
        return _keyword_defaults(self.advantages) if self.advantages else {}

    @property
    def is_policy_gradient(self) -> bool:
        """Whether it is made of advantages of sampled tokens, and not of log-probs of whole completions."""
        return self.advantages is not None

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that can be set for this loss, with defaults."""
        divergence = DIVERGENCE_DEFAULTS if self.supports_f_divergence else {}
        beta = {"beta": DEFAULT_BETA} if self.has_token_logps else {}
        return beta | self.advantage_defaults | self.keyword_defaults | divergence

    @property
    def has_token_logps(self) -> bool:
        """Whether it is made of log-probs of completions, whose tokens can be weighted."""
        return self.rewards not in (RewardKind.HEAD, RewardKind.SCORE)

    @property
    def summary(self) -> str:
        """The docstring up to its first section."""
        return self._sections[""]

    @property
    def formula(self) -> str:
        """The docstring's `Formula`; r: log-ratio log pi - log pi_ref, w: chosen completion, l: rejected completion."""
        return self._sections.get("Formula", "")

    @property
    def paper(self) -> str:
        """The docstring's `Paper`: arXiv number, authors, equation."""
        return self._sections.get("Paper", "")

    @property
    def when_to_use(self) -> str:
        """The docstring's `When to use`."""
        return self._sections.get("When to use", "")

    @property
    def _sections(self) -> dict[str, str]:
        """The docstring's Google-style sections, each on one line; the text before the first one is ""."""
        summary, *rest = re.split(r"^(\w[\w ]*):\n", inspect.getdoc(self.function) or "", flags=re.MULTILINE)
        sections = zip(rest[::2], rest[1::2], strict=True)
        return {"": summary.strip(), **{name: " ".join(text.split()) for name, text in sections}}


def _keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def declare_loss(**facts: Any) -> Callable[[Callable[..., mx.array]], Callable[..., mx.array]]:
    """Declare a function to be a loss; `facts` are attributes of `LossFunction`. The function itself stays as it is."""

    def declare(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        setattr(function, ATTRIBUTE, LossFunction(function, **facts))
        return function

    return declare


def declared_loss(value: object) -> LossFunction | None:
    """What `declare_loss` declared about a function; None where it is not decorated."""
    return getattr(value, ATTRIBUTE, None)
