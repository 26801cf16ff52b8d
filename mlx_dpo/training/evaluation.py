"""Measuring a policy on pairs, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dpo.data.batches import MicroBatch, ahead, micro_batches
from mlx_dpo.data.pairs import EncodedPairs
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.policy import without_dropout
from mlx_dpo.model.reference import ReferenceLogps
from mlx_dpo.objectives import Loss, PairLogps
from mlx_dpo.training.metrics import mean_metrics, pair_metrics

Batch = tuple[np.ndarray, list[MicroBatch]]


def batches_of(pairs: EncodedPairs, order: Iterator[np.ndarray], budget: Budget) -> Iterator[Batch]:
    """The indices of each batch of an order, with its micro-batches, encoded in a thread ahead of their use."""
    return ahead((indices, micro_batches([pairs[i] for i in indices], budget.fits)) for indices in order)


@dataclass(frozen=True)
class Scored:
    """Pairs of an optimizer batch with their log-probs, in the order of the micro-batches they came in.

    Attributes:
        logps, reference: [2 * pairs], chosen then rejected, float64 nats, summed over the completion.
        tokens: [2 * pairs], lengths of the completions.
        mean_chosen_tokens: of the whole optimizer batch.
    """

    logps: np.ndarray
    reference: np.ndarray
    tokens: np.ndarray
    mean_chosen_tokens: float

    @classmethod
    def of(
        cls,
        micros: Sequence[MicroBatch],
        logps: Sequence[np.ndarray],
        references: Sequence[np.ndarray],
        mean_chosen_tokens: float,
    ) -> Scored:
        """The pairs of some micro-batches together; each has [2 * its pairs] log-probs."""
        tokens = [np.array([len(completion) for _, completion in micro.sequences], np.float64) for micro in micros]
        return cls(_sides_joined(logps), _sides_joined(references), _sides_joined(tokens), mean_chosen_tokens)

    @property
    def seen(self) -> PairLogps:
        """As objectives see them."""
        return PairLogps.of(self.logps, self.reference, self.tokens, self.mean_chosen_tokens)

    def metrics(self, losses: mx.array, loss: Loss) -> np.ndarray:
        """`pair_metrics` of them under a loss."""
        return pair_metrics(losses, self.logps, loss.rewards(self.logps, self.reference, self.tokens))


def mean_chosen_tokens(micros: Sequence[MicroBatch]) -> float:
    """The mean length of a batch's chosen completions."""
    return float(np.mean([len(done) for micro in micros for _, done in micro.sequences[: len(micro.pairs)]]))


def _sides_joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """[2 * pairs], all chosen then all rejected, of parts of that order."""
    return np.concatenate([part.reshape(2, -1) for part in parts], axis=1).reshape(-1)


def windows(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`indices` in consecutive pieces of `size`."""
    return (indices[i : i + size] for i in range(0, len(indices), size))


def evaluate_pairs(
    budget: Budget,
    pairs: EncodedPairs,
    indices: np.ndarray,
    reference: ReferenceLogps,
    loss: Loss,
    *,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """The mean of every pair metric over the pairs `indices`; `progress` hears how many are done."""
    rows, done, network = [], 0, budget.network
    with without_dropout(network.model):
        for batch_indices, micros in batches_of(pairs, windows(indices, batch_size), budget):
            references = [reference.of(batch_indices[list(micro.pairs)], micro) for micro in micros]
            logps = [network.logps(micro).sums for micro in micros]
            batch = Scored.of(micros, logps, references, mean_chosen_tokens(micros))
            rows.append(batch.metrics(loss(batch.seen), loss))
            done += len(batch_indices)
            if progress is not None:
                progress(done)
    return mean_metrics(rows)
