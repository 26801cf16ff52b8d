"""What is known of a micro-batch's completions, token by token, and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.token_logps import TokenTerms


@dataclass(frozen=True)
class CompletionTargets:
    """Of each trained position: its target, and which sequence it belongs to."""

    token_ids: np.ndarray
    sequence_indices: np.ndarray

    @classmethod
    def from_groups(cls, parts: Sequence[tuple[Sequence[int], np.ndarray, np.ndarray]]) -> CompletionTargets:
        """From parts of (sequences, targets, where targets are)."""
        targets = [wanted[trained] for _, wanted, trained in parts]
        sequences = [np.array(which)[np.nonzero(trained)[0]] for which, _, trained in parts]
        return cls(np.concatenate(targets), np.concatenate(sequences))


@dataclass(frozen=True)
class CompletionLogps:
    """Log-probs of a micro-batch's completion tokens, one after the other.

    Attributes:
        tokens: [tokens], float32, nats.
        sequences: [tokens], which sequence each belongs to; a sequence's tokens stand together, in order.
        count: sequences in all.
        emphasis: [tokens], what each counts in a sum; None where all count 1.
        collisions, token_kls: [tokens], see `TokenTerms`; None where they were not asked for.
    """

    token_logps: np.ndarray
    sequence_indices: np.ndarray
    num_sequences: int
    token_weights: np.ndarray | None = None
    collision_logps: np.ndarray | None = None
    token_kls: np.ndarray | None = None

    @classmethod
    def from_token_terms(cls, batch: MicroBatch, places: CompletionTargets, terms: TokenTerms) -> CompletionLogps:
        """The terms of the tokens at some places of a micro-batch."""
        of_each, emphasis = batch.token_weights, None
        if of_each is not None:
            in_turn = places.sequence_indices[np.flatnonzero(np.diff(places.sequence_indices, prepend=-1))]
            emphasis = np.concatenate([of_each[i] for i in in_turn])
        collisions, kls = (None if term is None else np.array(term) for term in (terms.collision_logps, terms.kls))
        return cls(np.array(terms.logps), places.sequence_indices, len(batch.sequences), emphasis, collisions, kls)

    @property
    def sums(self) -> np.ndarray:
        """log p(completion | prompt) of each sequence, [sequences], summed in float64.

        Rewards are small differences of large sums: at 300 nats the step between float32 numbers is 3e-5.
        """
        tokens = self.token_logps.astype(np.float64)
        return self._summed(tokens if self.token_weights is None else tokens * self.token_weights)

    @property
    def unweighted_sums(self) -> np.ndarray:
        """The same with every token counted alike."""
        return self._summed(self.token_logps.astype(np.float64))

    @property
    def alignments(self) -> np.ndarray:
        """[sequences], how likely a completion is beside what the policy would draw itself, 1 being as likely.

        exp of the mean over tokens of log p - log sum(p^2): WPO's sampled alignment, Zhou et al. 2024
        (arXiv 2406.11827).
        """
        assert self.collision_logps is not None, "they were not asked for"
        return np.exp(
            self._summed(self.token_logps.astype(np.float64) - self.collision_logps)
            / self._summed(np.ones_like(self.token_logps))
        )

    @property
    def kls(self) -> np.ndarray:
        """[sequences], nats: the sum over a completion's positions of KL(other policy || this one)."""
        assert self.token_kls is not None, "they were not asked for"
        return self._summed(self.token_kls.astype(np.float64))

    def token_grads(self, weights: np.ndarray, plain: np.ndarray | None = None) -> mx.array:
        """[tokens, 1] float32: what a token's log-prob counts, of weights of `sums` and of `plain`, [sequences]."""
        each = weights[self.sequence_indices]
        each = each if self.token_weights is None else each * self.token_weights
        each = each if plain is None else each + plain[self.sequence_indices]
        return mx.array(each.astype(np.float32))[:, None]

    def _summed(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.sequence_indices, values, minlength=self.num_sequences)
