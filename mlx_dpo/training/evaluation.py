"""Measuring a policy on pairs, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from mlx_dpo.data.batches import MicroBatch, ahead, micro_batches
from mlx_dpo.data.pairs import EncodedPairs
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.policy import without_dropout
from mlx_dpo.model.reference import ReferenceLogps
from mlx_dpo.objectives import Loss
from mlx_dpo.training.metrics import mean_metrics, pair_metrics

Batch = tuple[np.ndarray, list[MicroBatch]]


def batches_of(pairs: EncodedPairs, order: Iterator[np.ndarray], budget: Budget) -> Iterator[Batch]:
    """The indices of each batch of an order, with its micro-batches, encoded in a thread ahead of their use."""
    return ahead((indices, micro_batches([pairs[i] for i in indices], budget.fits)) for indices in order)


def logratios(logps: np.ndarray, reference: np.ndarray) -> mx.array:
    """log pi - log pi_ref, [2 * pairs]: the difference in float64, then float32."""
    return mx.array((logps - reference).astype(np.float32))


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
            for micro in micros:
                ref = reference.of(batch_indices[list(micro.pairs)], micro)
                logps = network.logps(micro).sums
                losses = loss.of_pairs(logratios(logps, ref))
                rows.append(pair_metrics(losses, logps, ref, loss.beta))
            done += len(batch_indices)
            if progress is not None:
                progress(done)
    return mean_metrics(rows)
