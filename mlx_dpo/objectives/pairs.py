"""What an objective on pairs sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np


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
    """

    chosen_logratios: mx.array
    rejected_logratios: mx.array
    chosen_reference: mx.array
    rejected_reference: mx.array
    chosen_tokens: mx.array
    rejected_tokens: mx.array
    mean_chosen_tokens: float
    score: Callable[[mx.array], mx.array] = lambda logratios: logratios

    @classmethod
    def of(cls, policy: np.ndarray, reference: np.ndarray, tokens: np.ndarray, mean_chosen_tokens: float) -> PairLogps:
        """From arrays of [2 * pairs], float64, chosen then rejected.

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
        )

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

    def with_logratios(self, chosen: mx.array, rejected: mx.array) -> PairLogps:
        """The same pairs under other log-ratios."""
        return replace(self, chosen_logratios=chosen, rejected_logratios=rejected)
