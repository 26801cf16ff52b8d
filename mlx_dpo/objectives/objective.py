"""An objective and what there is to know of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import mlx.core as mx

from mlx_dpo.objectives.loss_inputs import LossState

# Of what is not in an objective's own signature: rewards are made with beta, whatever the loss.
DEFAULT_BETA = 0.1
DIVERGENCE_DEFAULTS = {"f_divergence": "reverse_kl", "f_alpha_divergence_coef": 0.5}


class RewardKind(Enum):
    """What a loss's rewards are, as TRL logs them; the values are for people."""

    LOGRATIO = "beta * (log pi(y|x) - log pi_ref(y|x)), summed over the answer's tokens"
    LOGP = "beta * log pi(y|x), summed over the answer's tokens"
    MEAN_LOGP = "beta * log pi(y|x) / |y|, the mean over the answer's tokens"


@dataclass(frozen=True)
class LossFunction:
    """A function of pairs or of completions, and its facts.

    Attributes:
        losses: takes `PairLogps`, or `LabelledLogps` where `unpaired`, and the objective's knobs by keyword; gives
            losses, [pairs] or [completions]. A knob's default is the one in its signature.
        formula: in text; r is a log-ratio log pi - log pi_ref, w the chosen answer, l the rejected one.
        paper: arXiv number and authors.
        when: when to use it.
        reference: whether its losses are made of the reference's log-probs; its rewards can be, without that.
        whole_batch: whether a pair's loss depends on the other pairs of its optimizer batch.
        above_zero: knobs that can't be 0 here, where they can elsewhere.
        unpaired: whether single completions do; a pair is then two.
        kl: whether it asks for the batch's KL on mismatched completions.
        token_kls: whether it asks for the KL of whole distributions at each position, for which the reference is run
            in every step.
        scores: whether it asks for the rows' scores.
        asks_margins: whether it honours the rows' `margin` column (`PairLogps.reward_margins`).
        running: takes what the objective kept of earlier batches (empty at first), a whole optimizer batch and the
            knobs, and gives what it keeps from now on, which its losses see; None where it keeps nothing.
        any_divergence: whether it stays right where `PairLogps.score` is another f-divergence's.
    """

    function: Callable[..., mx.array]
    formula: str = ""
    paper: str = ""
    when: str = ""
    rewards: RewardKind = RewardKind.LOGRATIO
    reference: bool = True
    whole_batch: bool = False
    any_divergence: bool = False
    above_zero: tuple[str, ...] = ()
    unpaired: bool = False
    kl: bool = False
    token_kls: bool = False
    scores: bool = False
    asks_margins: bool = False
    running: Callable[..., LossState] | None = None

    @property
    def name(self) -> str:
        """As `--loss` takes it."""
        return self.function.__name__

    @property
    def keyword_defaults(self) -> dict[str, Any]:
        """What `losses` takes by keyword, with its defaults."""
        given = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}

    @property
    def settings(self) -> dict[str, Any]:
        """All that can be set of it, with the defaults."""
        return {"beta": DEFAULT_BETA} | self.keyword_defaults | (DIVERGENCE_DEFAULTS if self.any_divergence else {})


def objective(**facts: Any) -> Callable[[Callable[..., mx.array]], LossFunction]:
    """Make an `Objective` of the function below it; `facts` are its attributes."""
    return lambda losses: LossFunction(losses, **facts)
