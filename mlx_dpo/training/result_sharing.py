"""Gather metrics and per-example values from all ranks after an optimizer step."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_dpo.distributed.communicator import Arrays, Communicator
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch


class SharesValues(Protocol):
    """A component with per-example values that all ranks need: a scorer or a batch source."""

    def shared_values(self, indices: np.ndarray) -> Arrays:
        """This rank's values of some examples, by name."""
        ...

    def receive_values(self, indices: np.ndarray, values: Arrays) -> None:
        """Take the values of all ranks."""
        ...


def share_results(
    communicator: Communicator, components: tuple[SharesValues, ...], batch: OptimizerBatch, metrics: np.ndarray
) -> tuple[Arrays, slice]:
    """Gather a step's results from all ranks, and pass each component its own values.

    Args:
        communicator: ranks that train together.
        components: the scorer and the batch source.
        batch: this rank's share of the examples.
        metrics: [examples, names], of this rank.

    Returns:
        `metrics` [examples, names] of all ranks, `tokens` [ranks] and `peak_memory` [ranks] in GB; and the slice of
        this rank's rows in `metrics`.
    """
    indices = batch.indices_in_order
    results = {
        "indices": indices,
        "metrics": metrics,
        "tokens": np.array([sum(micro.num_tokens for micro in batch.micro_batches)]),
        "peak_memory": np.array([mx.get_peak_memory() / 1e9]),
    }
    for component in components:
        results |= component.shared_values(indices)
    results, local = communicator.gather_and_concatenate(results)
    for component in components:
        component.receive_values(results["indices"], results)
    return results, local
