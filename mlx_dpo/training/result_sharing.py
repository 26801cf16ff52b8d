"""What ranks tell each other after an optimizer step."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_dpo.distributed.communicator import Arrays, Communicator
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch


class SharesValues(Protocol):
    """A component that has values of examples which every rank needs: a scorer, a batch source."""

    def shared_values(self, indices: np.ndarray) -> Arrays:
        """This rank's values of some examples, by name."""
        ...

    def receive_values(self, indices: np.ndarray, values: Arrays) -> None:
        """Take the values of all ranks."""
        ...


def share_results(
    communicator: Communicator, components: tuple[SharesValues, ...], batch: OptimizerBatch, metrics: np.ndarray
) -> tuple[Arrays, slice]:
    """Gather a step's results from all ranks, and give each component those of its values.

    Args:
        communicator: ranks that train together.
        components: the scorer and the batch source.
        batch: this rank's share of the examples.
        metrics: [examples, names], of this rank.

    Returns:
        `metrics` [examples, names] of all ranks, `tokens` and `peak_memory` (GB) of each; and this rank's place among
        the examples.
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
