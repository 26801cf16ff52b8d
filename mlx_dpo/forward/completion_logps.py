"""What is known of a micro-batch's completions, token by token, and summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.token_logps import TokenTerms


@dataclass(frozen=True)
class Places:
    """Of each trained position: its target, and which sequence it belongs to."""

    targets: np.ndarray
    sequences: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[tuple[Sequence[int], np.ndarray, np.ndarray]]) -> Places:
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

    tokens: np.ndarray
    sequences: np.ndarray
    count: int
    emphasis: np.ndarray | None = None
    collisions: np.ndarray | None = None
    token_kls: np.ndarray | None = None

    @classmethod
    def of(cls, batch: MicroBatch, places: Places, terms: TokenTerms) -> CompletionLogps:
        """The terms of the tokens at some places of a micro-batch."""
        of_each, emphasis = batch.emphasis, None
        if of_each is not None:
            in_turn = places.sequences[np.flatnonzero(np.diff(places.sequences, prepend=-1))]
            emphasis = np.concatenate([of_each[i] for i in in_turn])
        collisions, kls = (None if term is None else np.array(term) for term in (terms.collisions, terms.kls))
        return cls(np.array(terms.logps), places.sequences, len(batch.sequences), emphasis, collisions, kls)

    @property
    def sums(self) -> np.ndarray:
        """log p(completion | prompt) of each sequence, [sequences], summed in float64.

        Rewards are small differences of large sums: at 300 nats the step between float32 numbers is 3e-5.
        """
        tokens = self.tokens.astype(np.float64)
        return self._summed(tokens if self.emphasis is None else tokens * self.emphasis)

    @property
    def plain(self) -> np.ndarray:
        """The same with every token counted alike."""
        return self._summed(self.tokens.astype(np.float64))

    @property
    def alignments(self) -> np.ndarray:
        """[sequences], how likely a completion is beside what the policy would draw itself, 1 being as likely.

        exp of the mean over tokens of log p - log sum(p^2): WPO's sampled alignment, Zhou et al. 2024
        (arXiv 2406.11827).
        """
        assert self.collisions is not None, "they were not asked for"
        return np.exp(
            self._summed(self.tokens.astype(np.float64) - self.collisions) / self._summed(np.ones_like(self.tokens))
        )

    @property
    def kls(self) -> np.ndarray:
        """[sequences], nats: the sum over a completion's positions of KL(other policy || this one)."""
        assert self.token_kls is not None, "they were not asked for"
        return self._summed(self.token_kls.astype(np.float64))

    def each(self, weights: np.ndarray, plain: np.ndarray | None = None) -> mx.array:
        """[tokens, 1] float32: what a token's log-prob counts, of weights of `sums` and of `plain`, [sequences]."""
        each = weights[self.sequences]
        each = each if self.emphasis is None else each * self.emphasis
        each = each if plain is None else each + plain[self.sequences]
        return mx.array(each.astype(np.float32))[:, None]

    def _summed(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.sequences, values, minlength=self.count)
