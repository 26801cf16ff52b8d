"""Log-probabilities of a micro-batch's completions, by token and summed over each completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import mlx.core as mx
import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.token_logps import TokenTerms


class LogpOptions(TypedDict, total=False):
    """What to compute of completions beside their log-probs.

    Attributes:
        collision_logps: whether to compute log sum(p^2), which WPO's weights need (`CompletionLogps.alignments`).
        reference_hidden_states: [tokens, hidden], the reference's, to compute `CompletionLogps.kls`; or None.
        reference_token_logps: [tokens] nats, the reference's, to compute `CompletionLogps.kl_scores`; or None.
    """

    collision_logps: bool
    reference_hidden_states: mx.array | None
    reference_token_logps: np.ndarray | None


@dataclass(frozen=True)
class CompletionTargets:
    """The completion tokens of a micro-batch.

    Attributes:
        token_ids: [tokens].
        sequence_indices: [tokens], the sequence that each token belongs to.
    """

    token_ids: np.ndarray
    sequence_indices: np.ndarray

    @classmethod
    def from_groups(cls, groups: Sequence[tuple[Sequence[int], np.ndarray, np.ndarray]]) -> CompletionTargets:
        """Collect the tokens of groups of completions.

        Args:
            groups: of each (sequence indices [completions], targets [completions, tokens], mask of the completion
                tokens [completions, tokens]).
        """
        targets = [token_ids[mask] for _, token_ids, mask in groups]
        sequences = [np.array(indices)[np.nonzero(mask)[0]] for indices, _, mask in groups]
        return cls(np.concatenate(targets), np.concatenate(sequences))


@dataclass(frozen=True)
class CompletionLogps:
    """Log-probs of a micro-batch's completion tokens, one after the other.

    Attributes:
        token_logps: [tokens] float32, nats.
        sequence_indices: [tokens], the sequence of each token; the tokens of a sequence are contiguous and in order.
        num_sequences: number of sequences.
        token_weights: [tokens], weights of the tokens in sums; None if all are 1.
        collision_logps: [tokens], see `TokenTerms`; None if not requested.
        token_kls: [tokens] nats, KL(reference || this policy) at each position; None if not requested.
        token_logratios: [tokens] nats, log p - log p_reference; None if not requested.
        token_values: [tokens] values of the states before each token; None without a value head.
    """

    token_logps: np.ndarray
    sequence_indices: np.ndarray
    num_sequences: int
    token_weights: np.ndarray | None = None
    collision_logps: np.ndarray | None = None
    token_kls: np.ndarray | None = None
    token_logratios: np.ndarray | None = None
    token_values: np.ndarray | None = None

    @classmethod
    def from_token_terms(
        cls, batch: MicroBatch, targets: CompletionTargets, terms: TokenTerms, reference: np.ndarray | None = None
    ) -> CompletionLogps:
        """Collect the terms of the completion tokens of a micro-batch.

        Args:
            batch: the micro-batch.
            targets: its completion tokens.
            terms: log-probs and more of the same tokens, in the same order.
            reference: [tokens] log-probs under the reference, nats; None if not requested.
        """
        weights, indices = None, targets.sequence_indices
        if (by_sequence := batch.token_weights) is not None:
            order = indices[np.flatnonzero(np.diff(indices, prepend=-1))]
            weights = np.concatenate([by_sequence[i] for i in order])
        collisions, kls = (None if term is None else np.array(term) for term in (terms.collision_logps, terms.kls))
        logps = np.array(terms.logps)
        logratios = None if reference is None else logps.astype(np.float64) - reference
        return cls(logps, indices, len(batch.sequences), weights, collisions, kls, logratios)

    @property
    def sums(self) -> np.ndarray:
        """Sums of log p(completion | prompt) of each sequence, [sequences], summed in float64.

        Rewards are small differences of large sums: at 300 nats the step between float32 numbers is 3e-5.
        """
        tokens = self.token_logps.astype(np.float64)
        return self._sum_by_sequence(tokens if self.token_weights is None else tokens * self.token_weights)

    @property
    def unweighted_sums(self) -> np.ndarray:
        """Sums of log p(completion | prompt) of each sequence, [sequences], with every token weight 1."""
        return self._sum_by_sequence(self.token_logps.astype(np.float64))

    @property
    def alignments(self) -> np.ndarray:
        """WPO's sampled alignment of each completion, [sequences]; 1 for one as likely as the policy's own samples.

        exp of the mean over tokens of log p - log sum(p^2); Zhou et al. 2024 (arXiv 2406.11827).
        """
        if self.collision_logps is None:
            raise ValueError("collision_logps were not requested of the forward pass")
        return np.exp(
            self._sum_by_sequence(self.token_logps.astype(np.float64) - self.collision_logps)
            / self._sum_by_sequence(np.ones_like(self.token_logps))
        )

    @property
    def kls(self) -> np.ndarray:
        """[sequences] nats: KL(reference || this policy), summed over the positions of a completion."""
        if self.token_kls is None:
            raise ValueError("KLs were not requested of the forward pass: it had no reference_hidden_states")
        return self._sum_by_sequence(self.token_kls.astype(np.float64))

    @property
    def kl_scores(self) -> np.ndarray:
        """[sequences]: sum over tokens of (log p - log p_reference) * log p.

        Its gradient, with the first factor held constant, is the REINFORCE estimate of the gradient of the KL to the
        reference (Munos et al. 2023, arXiv 2312.00886).
        """
        if self.token_logratios is None:
            raise ValueError("log-ratios were not requested of the forward pass: it had no reference_token_logps")
        return self._sum_by_sequence(self.token_logratios * self.token_logps)

    def token_grads(
        self, weights: np.ndarray, plain: np.ndarray | None = None, kl_scores: np.ndarray | None = None
    ) -> mx.array:
        """Gradients with respect to the token log-probs, [tokens, 1] float32.

        Args:
            weights: [sequences], gradients with respect to `sums`.
            plain: [sequences], gradients with respect to `unweighted_sums`.
            kl_scores: [sequences], gradients with respect to `kl_scores`.
        """
        gradients = weights[self.sequence_indices]
        gradients = gradients if self.token_weights is None else gradients * self.token_weights
        gradients = gradients if plain is None else gradients + plain[self.sequence_indices]
        if kl_scores is not None and self.token_logratios is not None:
            gradients = gradients + kl_scores[self.sequence_indices] * self.token_logratios
        return mx.array(gradients.astype(np.float32))[:, None]

    @property
    def token_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """([tokens], [tokens]): the sequence of each token, and its place among that sequence's tokens, from 0."""
        starts = np.flatnonzero(np.diff(self.sequence_indices, prepend=-1))
        lengths = np.diff(starts, append=len(self.sequence_indices))
        return self.sequence_indices, np.arange(len(self.sequence_indices)) - np.repeat(starts, lengths)

    def _sum_by_sequence(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self.sequence_indices, values, minlength=self.num_sequences)
