"""Measuring a policy on examples, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mlx_dpo.data.pairs import EncodedPairs
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.policy import without_dropout
from mlx_dpo.model.reference import ReferenceLogps
from mlx_dpo.objectives import AllRunning, Loss
from mlx_dpo.training.metrics import mean_metrics
from mlx_dpo.training.scored import BatchFacts, Scored, asked, batches_of


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
) -> dict[str, float]:
    """The mean of every metric over the examples `indices`; see `measure_examples`."""
    table = measure_examples(
        budget, examples, indices, reference, loss, batch_size=batch_size, running=running, progress=progress
    )
    return mean_metrics([table])


def measure_examples(
    budget: Budget,
    examples: EncodedPairs,
    indices: np.ndarray,
    reference: ReferenceLogps,
    loss: Loss,
    *,
    batch_size: int,
    running: AllRunning | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[indices, METRICS], what is measured of each.

    Args:
        running: what the loss keeps of the batches it was trained on.
        progress: hears how many are done.
    """
    rows, done, network = [], 0, budget.network
    with without_dropout(network.model):
        for batch in batches_of(examples, windows(indices, batch_size), budget, loss):
            references = [reference.of(batch.of(micro), micro) for micro in batch.micros]
            logps = [network.logps(micro, **asked(loss, reference, micro)) for micro in batch.micros]
            scored = Scored.of(batch.micros, logps, references, BatchFacts.of(batch, network, reference), loss)
            table = scored.metrics(loss(scored.seen, running, scored.weights))
            positions = [position for micro in batch.micros for position in micro.positions]
            rows.append(table[np.argsort(positions)])
            done += len(batch.indices)
            if progress is not None:
                progress(done)
    return np.concatenate(rows)
