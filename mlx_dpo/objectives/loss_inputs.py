"""Inputs of a loss function: log-probs of pairs, or of single completions with labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

LossState: TypeAlias = tuple[float, ...]  # what a loss keeps from batch to batch


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of pairs' completions. Arrays are [pairs], float32; a log-prob is in nats, summed over tokens.

    In TRL's names: `chosen_logps` and `rejected_logps` are the same; `chosen_reference` is `ref_chosen_logps`, and
    `rejected_reference` is `ref_rejected_logps`. `margins` is the difference of the log-ratios, without beta; the
    metric rewards/margins includes beta. `chosen_scores` are rewards without beta, not the rows' `score_chosen`.

    Attributes:
        chosen_logratios, rejected_logratios: log pi - log pi_ref, with respect to which gradients are taken; times
            beta, it is a completion's implicit reward (Rafailov et al. 2023, arXiv 2305.18290, eq. 5 without its
            constant).
        chosen_reference, rejected_reference: log pi_ref; zero without a reference, so that the log-ratios are exactly
            the policy's log-probs.
        chosen_tokens, rejected_tokens: lengths of the completions.
        mean_chosen_tokens: mean length of the chosen completions of the whole optimizer batch, of which these pairs
            may be a part.
        score_function: from log-ratios to rewards without beta; not the identity under another f-divergence.
        target_margins: the target reward margin of each pair, from the rows' `margin` column; 0 without one.
        score_gaps: chosen score - rejected score of the rows; NaN without scores.
        chosen_kls, rejected_kls: KL(pi_ref || pi) summed over a completion's positions; None unless needed.
        chosen_kl_scores, rejected_kl_scores: sums over tokens of (log pi - log pi_ref) * log pi, whose gradient has the
            first factor constant; None unless needed.
        chosen_is_reference: 1 where the reference has written the chosen completion, 0 where the rejected one.
        chosen_unweighted, rejected_unweighted: log pi with equal weights for all tokens, if the log-ratios weight
            tokens (LD-DPO); else None.
        kl: the batch's KL(pi || pi_ref), at least 0, estimated on mismatched completions; 0 unless needed.
        state: the loss's state after this batch's update; empty for a loss without one.
    """

    chosen_logratios: mx.array
    rejected_logratios: mx.array
    chosen_reference: mx.array
    rejected_reference: mx.array
    chosen_tokens: mx.array
    rejected_tokens: mx.array
    mean_chosen_tokens: float
    score_function: Callable[[mx.array], mx.array] = lambda logratios: logratios
    target_margins: mx.array = field(default_factory=lambda: mx.array(0.0))
    score_gaps: mx.array = field(default_factory=lambda: mx.array(float("nan")))
    chosen_kls: mx.array | None = None
    rejected_kls: mx.array | None = None
    chosen_kl_scores: mx.array | None = None
    rejected_kl_scores: mx.array | None = None
    chosen_is_reference: mx.array = field(default_factory=lambda: mx.array(0.0))
    chosen_unweighted: mx.array | None = None
    rejected_unweighted: mx.array | None = None
    kl: float = 0.0
    state: LossState = ()

    @classmethod
    def from_numpy(
        cls, policy: np.ndarray, reference: np.ndarray, tokens: np.ndarray, mean_chosen_tokens: float, **fields: Any
    ) -> PairLogps:
        """From float64 arrays of [2 * pairs], chosen then rejected.

        The log-ratios are small differences of large sums, so they are computed before anything becomes float32.

        Args:
            policy: log-probs under the policy.
            reference: log-probs under the reference.
            tokens: lengths.
            mean_chosen_tokens: see the attribute.
            fields: further attributes.
        """
        logratios = policy - reference
        return cls(*_halves(logratios), *_halves(reference), *_halves(tokens), mean_chosen_tokens, **fields)

    @property
    def gradient_fields(self) -> dict[str, tuple[str, ...]]:
        """What gradients are taken with respect to, by the argument of `ForwardTrace.gradient` that takes them."""
        fields = {
            "sums": ("chosen_logratios", "rejected_logratios"),
            "kls": ("chosen_kls", "rejected_kls"),
            "kl_scores": ("chosen_kl_scores", "rejected_kl_scores"),
            "plain": ("chosen_unweighted", "rejected_unweighted"),
        }
        return {kind: names for kind, names in fields.items() if getattr(self, names[0]) is not None}

    @property
    def chosen_scores(self) -> mx.array:
        """Rewards of the chosen completions, without beta; the log-ratios unless under another f-divergence."""
        return self.score_function(self.chosen_logratios)

    @property
    def rejected_scores(self) -> mx.array:
        """Rewards of the rejected completions, without beta; the log-ratios unless under another f-divergence."""
        return self.score_function(self.rejected_logratios)

    @property
    def margins(self) -> mx.array:
        """Chosen - rejected scores, without beta; TRL's logits before beta."""
        return self.chosen_scores - self.rejected_scores

    @property
    def mean_margins(self) -> mx.array:
        """Chosen - rejected scores, each divided by its completion's length."""
        return self.chosen_scores / self.chosen_tokens - self.rejected_scores / self.rejected_tokens

    @property
    def chosen_logps(self) -> mx.array:
        """Values of log pi(completion | prompt) of the chosen completions."""
        return self.chosen_logratios + self.chosen_reference

    @property
    def rejected_logps(self) -> mx.array:
        """Values of log pi(completion | prompt) of the rejected completions."""
        return self.rejected_logratios + self.rejected_reference

    @property
    def chosen_mean_logps(self) -> mx.array:
        """Values of log pi(completion | prompt) of the chosen completions, per token."""
        return self.chosen_logps / self.chosen_tokens

    @property
    def rejected_mean_logps(self) -> mx.array:
        """Values of log pi(completion | prompt) of the rejected completions, per token."""
        return self.rejected_logps / self.rejected_tokens

    @property
    def chosen_unweighted_logps(self) -> mx.array:
        """Values of log pi(completion | prompt) of the chosen completions with equal weights for all tokens."""
        return self.chosen_logps if self.chosen_unweighted is None else self.chosen_unweighted

    @property
    def token_kls(self) -> tuple[mx.array, mx.array]:
        """`chosen_kls` and `rejected_kls` of a loss that is declared with `needs_token_kls`."""
        if self.chosen_kls is None or self.rejected_kls is None:
            raise TypeError("a loss that reads token_kls must be declared with needs_token_kls=True")
        return self.chosen_kls, self.rejected_kls

    def reward_margins(self, beta: float) -> mx.array:
        """Return beta * margins - target margins: positive if a pair's margin is reached."""
        return beta * self.margins - self.target_margins

    def as_labelled(self) -> LabelledLogps:
        """Every pair as two completions: all chosen ones, labelled true, then all rejected ones, labelled false."""
        ones = mx.ones(len(self.chosen_logratios))
        kl_scores = None
        if self.chosen_kl_scores is not None and self.rejected_kl_scores is not None:
            kl_scores = mx.concatenate([self.chosen_kl_scores, self.rejected_kl_scores])
        return LabelledLogps(
            mx.concatenate([self.chosen_logratios, self.rejected_logratios]),
            mx.concatenate([self.chosen_reference, self.rejected_reference]),
            mx.concatenate([self.chosen_tokens, self.rejected_tokens]),
            mx.concatenate([ones, mx.zeros_like(ones)]),
            self.mean_chosen_tokens / 2,
            mx.concatenate([self.chosen_unweighted_logps, self.rejected_logps]),
            self.kl,
            self.state,
            kl_scores=kl_scores,
        )


@dataclass(frozen=True)
class LabelledLogps:
    """Log-probs of single completions with labels. Arrays are [completions], float32; a log-prob is in nats.

    Attributes:
        logratios: log pi - log pi_ref, with respect to which gradients are taken.
        reference: log pi_ref; zero without a reference.
        tokens: lengths of the completions.
        desirable: 1 if the label is true, 0 if it is false.
        mean_desirable_tokens: tokens of desirable completions, per completion of either label, in the optimizer batch.
        unweighted: log pi with equal weights for all tokens, if it is not the sum of the first two; else None.
        kl: the batch's KL(pi || pi_ref), at least 0, estimated on mismatched completions; 0 unless needed.
        state: the loss's state after this batch's update; empty for a loss without one.
        win_rates: from 0 to 1, how often a judge prefers them to others; None: their labels.
        kl_scores: sums over tokens of (log pi - log pi_ref) * log pi, whose gradient has the first factor constant;
            None unless needed.
    """

    logratios: mx.array
    reference: mx.array
    tokens: mx.array
    desirable: mx.array
    mean_desirable_tokens: float
    unweighted: mx.array | None = None
    kl: float = 0.0
    state: LossState = ()
    win_rates: mx.array | None = None
    kl_scores: mx.array | None = None

    @classmethod
    def from_numpy(
        cls,
        policy: np.ndarray,
        reference: np.ndarray,
        tokens: np.ndarray,
        desirable: np.ndarray,
        mean_desirable_tokens: float,
        **fields: Any,
    ) -> LabelledLogps:
        """Build from float64 arrays; the log-ratios are computed before anything becomes float32.

        Args:
            policy: [completions] log-probs under the policy, nats.
            reference: [completions] log-probs under the reference, nats.
            tokens: [completions] lengths.
            desirable: [completions] bool.
            mean_desirable_tokens: see the attribute.
            fields: further attributes.
        """
        logratios, labels = _float32(policy - reference), _float32(desirable)
        return cls(logratios, _float32(reference), _float32(tokens), labels, mean_desirable_tokens, **fields)

    @property
    def gradient_fields(self) -> dict[str, tuple[str, ...]]:
        """What gradients are taken with respect to, by the argument of `ForwardTrace.gradient` that takes them."""
        return {"sums": ("logratios",), **({} if self.kl_scores is None else {"kl_scores": ("kl_scores",)})}

    @property
    def unweighted_logps(self) -> mx.array:
        """Values of log pi(completion | prompt) with equal weights for all tokens."""
        return self.logratios + self.reference if self.unweighted is None else self.unweighted


def _float32(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.float32))


def _halves(values: np.ndarray) -> tuple[mx.array, mx.array]:
    chosen, rejected = np.split(values, 2)
    return _float32(chosen), _float32(rejected)


def example_pairs(**fields: Any) -> PairLogps:
    """Two made-up pairs: the docstrings' examples use them, and a user's loss is tried on them before training.

    Args:
        fields: further attributes of `PairLogps`.
    """
    logratios = mx.array([0.5, -0.5])
    tokens = mx.array([4.0, 1.0]), mx.array([3.0, 9.0])
    return PairLogps(logratios, -logratios, logratios - 20, logratios - 30, *tokens, 2.5, **fields)
