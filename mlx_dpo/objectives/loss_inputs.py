"""What an objective sees: pairs, or single completions with labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

LossState: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class PairLogps:
    """Log-probabilities of pairs' completions. Arrays are [pairs], float32; a log-prob is in nats, summed over tokens.

    Attributes:
        chosen_logratios, rejected_logratios: log pi - log pi_ref, what gradients are taken with respect to; beta times
            it is a completion's implicit reward (Rafailov et al. 2023, arXiv 2305.18290, eq. 5 without its constant).
        chosen_reference, rejected_reference: log pi_ref; zero where there is no reference, so that the log-ratios are
            the policy's log-probs to the bit.
        chosen_tokens, rejected_tokens: lengths of the completions.
        mean_chosen_tokens: mean length of the chosen ones of the whole optimizer batch, of which these pairs may be
            a part only.
        score: from log-ratios to rewards without beta; another function than this one under another f-divergence.
        asked_margins: how much more reward the chosen answer is to get, of the rows' `margin` column; 0 without one.
        score_gaps: the chosen answer's score less the rejected one's, of the rows; NaN without scores.
        chosen_kls, rejected_kls: KL(pi_ref || pi) summed over a completion's positions; None where not asked for.
        chosen_plain, rejected_plain: log pi, every token counted alike, where in the others they are not (LD-DPO); else
            None.
        kl: the batch's KL(pi || pi_ref), at least 0, estimated on mismatched completions; 0 where not asked for.
        running: what the objective keeps of all batches up to this one; empty before the first.
    """

    chosen_logratios: mx.array
    rejected_logratios: mx.array
    chosen_reference: mx.array
    rejected_reference: mx.array
    chosen_tokens: mx.array
    rejected_tokens: mx.array
    mean_chosen_tokens: float
    score: Callable[[mx.array], mx.array] = lambda logratios: logratios
    asked_margins: mx.array = field(default_factory=lambda: mx.array(0.0))
    score_gaps: mx.array = field(default_factory=lambda: mx.array(float("nan")))
    chosen_kls: mx.array | None = None
    rejected_kls: mx.array | None = None
    chosen_plain: mx.array | None = None
    rejected_plain: mx.array | None = None
    kl: float = 0.0
    running: LossState = ()

    @classmethod
    def from_numpy(
        cls, policy: np.ndarray, reference: np.ndarray, tokens: np.ndarray, mean_chosen_tokens: float, **facts: Any
    ) -> PairLogps:
        """From arrays of [2 * pairs], float64, chosen then rejected; `facts` are more attributes.

        The log-ratios are small differences of large sums, so they are taken before anything becomes float32.
        """
        (chosen, rejected), (chosen_reference, rejected_reference), (chosen_tokens, rejected_tokens) = (
            map(mx.array, np.split(values.astype(np.float32), 2)) for values in (policy - reference, reference, tokens)
        )
        return cls(
            chosen,
            rejected,
            chosen_reference,
            rejected_reference,
            chosen_tokens,
            rejected_tokens,
            mean_chosen_tokens,
            **facts,
        )

    @property
    def gradient_fields(self) -> dict[str, tuple[str, ...]]:
        """Attributes that gradients are taken with respect to, by what of the completions they are made of."""
        every = {
            "sums": ("chosen_logratios", "rejected_logratios"),
            "kls": ("chosen_kls", "rejected_kls"),
            "plain": ("chosen_plain", "rejected_plain"),
        }
        return {kind: names for kind, names in every.items() if getattr(self, names[0]) is not None}

    @property
    def chosen_scores(self) -> mx.array:
        """Rewards without beta of the chosen completions: their log-ratios, but under another f-divergence."""
        return self.score(self.chosen_logratios)

    @property
    def rejected_scores(self) -> mx.array:
        """The same of the rejected ones."""
        return self.score(self.rejected_logratios)

    @property
    def margins(self) -> mx.array:
        """chosen - rejected scores."""
        return self.chosen_scores - self.rejected_scores

    @property
    def chosen_logps(self) -> mx.array:
        """log pi of the chosen completions."""
        return self.chosen_logratios + self.chosen_reference

    @property
    def rejected_logps(self) -> mx.array:
        """log pi of the rejected completions."""
        return self.rejected_logratios + self.rejected_reference

    @property
    def chosen_likelihoods(self) -> mx.array:
        """log pi of the chosen completions, every token counted alike."""
        return self.chosen_logps if self.chosen_plain is None else self.chosen_plain

    def reward_margins(self, beta: float) -> mx.array:
        """beta * margins, less what the rows ask for: positive where a pair is as it should be."""
        return beta * self.margins - self.asked_margins

    def as_labelled(self) -> LabelledLogps:
        """Each pair as two completions: all chosen ones, which are desirable, then all rejected ones."""
        ones = mx.ones(len(self.chosen_logratios))
        return LabelledLogps(
            mx.concatenate([self.chosen_logratios, self.rejected_logratios]),
            mx.concatenate([self.chosen_reference, self.rejected_reference]),
            mx.concatenate([self.chosen_tokens, self.rejected_tokens]),
            mx.concatenate([ones, mx.zeros_like(ones)]),
            self.mean_chosen_tokens / 2,
            mx.concatenate([self.chosen_likelihoods, self.rejected_logps]),
            self.kl,
            self.running,
        )


@dataclass(frozen=True)
class LabelledLogps:
    """Log-probabilities of single completions. Arrays are [completions], float32; as `PairLogps` otherwise.

    Attributes:
        logratios: log pi - log pi_ref, what gradients are taken with respect to.
        reference: log pi_ref; zero where there is no reference.
        tokens: lengths.
        desirable: 1 where a completion is as it should be, 0 where it is not.
        plain: log pi with every token counted alike, where it is not the sum of the two above; else None.
        mean_desirable_tokens: tokens of desirable completions, per completion of either kind, in the optimizer batch.
    """

    logratios: mx.array
    reference: mx.array
    tokens: mx.array
    desirable: mx.array
    mean_desirable_tokens: float
    plain: mx.array | None = None
    kl: float = 0.0
    running: LossState = ()

    @property
    def gradient_fields(self) -> dict[str, tuple[str, ...]]:
        """See `PairLogps.variables`."""
        return {"sums": ("logratios",)}

    @classmethod
    def from_numpy(
        cls,
        policy: np.ndarray,
        reference: np.ndarray,
        tokens: np.ndarray,
        desirable: np.ndarray,
        mean_desirable_tokens: float,
        **facts: Any,
    ) -> LabelledLogps:
        """From arrays of [completions], float64; see `PairLogps.of`."""
        ratios, of_reference, lengths, wanted = (
            mx.array(values.astype(np.float32)) for values in (policy - reference, reference, tokens, desirable)
        )
        return cls(ratios, of_reference, lengths, wanted, mean_desirable_tokens, **facts)

    @property
    def likelihoods(self) -> mx.array:
        """log pi, every token counted alike."""
        return self.logratios + self.reference if self.plain is None else self.plain
