"""Measuring a policy on examples, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.pairs import EncodedPairs
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.completion_logps import CompletionLogps
from mlx_dpo.model.policy import without_dropout
from mlx_dpo.model.reference import ReferenceLogps
from mlx_dpo.objectives import AllRunning, Loss
from mlx_dpo.training.metrics import mean_metrics
from mlx_dpo.training.scored import Batch, BatchFacts, Scored, asked, batches_of


@dataclass(frozen=True)
class Measured:
    """One example as it was measured.

    Attributes:
        index: its place in its source.
        metrics: [METRICS].
        tokens: of each completion, log p of its tokens, float32, nats; of pairs the chosen one's, then the rejected's.
        reference: [completions], log pi_ref, float64, nats, summed over tokens.
    """

    index: int
    metrics: np.ndarray
    tokens: list[np.ndarray]
    reference: np.ndarray

    @classmethod
    def of(
        cls, batch: Batch, logps: list[CompletionLogps], references: list[np.ndarray], metrics: np.ndarray
    ) -> Iterator[Measured]:
        """The examples of a batch, whose micro-batches have such log-probs; metrics: [examples, METRICS]."""
        rows = iter(metrics)
        for micro, one, reference in zip(batch.micros, logps, references, strict=True):
            tokens = [one.tokens[one.sequences == i] for i in range(one.count)]
            step = len(micro.positions)
            for i, index in enumerate(batch.of(micro)):
                yield cls(int(index), next(rows), tokens[i::step], reference[i::step])


def windows(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`indices` in consecutive pieces of `size`."""
    return (indices[i : i + size] for i in range(0, len(indices), size))


def evaluate_examples(
    budget: Budget,
    examples: EncodedPairs,
    indices: np.ndarray,
    reference: ReferenceLogps,
    loss: Loss,
    *,
    batch_size: int,
    running: AllRunning | None = None,
    progress: Callable[[int], None] | None = None,
    each: Callable[[Measured], None] | None = None,
) -> dict[str, float]:
    """The mean of every metric over the examples `indices`.

    Args:
        running: what the loss keeps of the batches it was trained on.
        progress: hears how many are done.
        each: hears of each example.
    """
    rows, done, network = [], 0, budget.network
    with without_dropout(network.model):
        for batch in batches_of(examples, windows(indices, batch_size), budget, loss):
            references = [reference.of(batch.of(micro), micro) for micro in batch.micros]
            logps = [network.logps(micro, **asked(loss, reference, micro)) for micro in batch.micros]
            scored = Scored.of(batch.micros, logps, references, BatchFacts.of(batch, network, reference), loss)
            rows.append(scored.metrics(loss(scored.seen, running, scored.weights)))
            if each is not None:
                for one in Measured.of(batch, logps, references, rows[-1]):
                    each(one)
            done += len(batch.indices)
            if progress is not None:
                progress(done)
    return mean_metrics(rows)
