"""The `BatchLoss` protocol, and its implementation for preference losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed.communicator import Arrays
from mlx_dpo.evaluation.metrics import metric_names
from mlx_dpo.evaluation.scored_batch import BatchStatistics, ScoredBatch, example_columns
from mlx_dpo.objectives import LossStates, WeightedLoss


@dataclass(frozen=True)
class BatchLossResult:
    """Metrics, gradients and running state of a loss for a group of examples.

    Attributes:
        metrics: [examples, metric names] float64; NaN where an example has no such number.
        gradients: of the sum of the losses, by the scorer's output: [sequences, ...] float32.
        states: running state of stateful losses (bco, beta_dpo) after these examples, by loss name.
    """

    metrics: np.ndarray
    gradients: Arrays
    states: dict[str, tuple[float, ...]]


class BatchLoss(Protocol):
    """Turns a scorer's outputs into losses, metrics and gradients.

    Attributes:
        metric_names: columns of the metrics; "loss" is one of them.
        whole_batch: whether an example's loss depends on the other examples of its optimizer batch.
    """

    metric_names: Sequence[str]
    whole_batch: bool

    def columns(self, micro_batches: Sequence[MicroBatch], outputs: Sequence[Arrays]) -> Arrays:
        """Return the inputs of the loss, each [examples, ...], in the order of the micro-batches.

        Args:
            micro_batches: those that were scored.
            outputs: the scorer's outputs for each of them.
        """
        ...

    def __call__(self, columns: Arrays, statistics: Any, states: LossStates) -> BatchLossResult:
        """Compute losses and gradients.

        Args:
            columns: what `columns` returned; those of all ranks' examples if `whole_batch`.
            statistics: the scorer's `batch_statistics` of the optimizer batch.
            states: running state of the loss before these examples.
        """
        ...


class PreferenceLoss(BatchLoss):
    """A weighted sum of preference losses on completion log-probabilities, or on the rewards of a head."""

    def __init__(self, loss: WeightedLoss) -> None:
        """Create the loss.

        Args:
            loss: the weighted sum.
        """
        self.loss, self.whole_batch, self.metric_names = loss, loss.whole_batch, metric_names(loss)

    def columns(self, micro_batches: Sequence[MicroBatch], outputs: Sequence[Arrays]) -> Arrays:
        """Return the columns of `ScoredBatch`."""
        return example_columns(micro_batches, outputs)

    def __call__(self, columns: Arrays, statistics: BatchStatistics, states: LossStates) -> BatchLossResult:
        """Compute losses and gradients; see `BatchLoss`."""
        batch = ScoredBatch(columns, statistics, self.loss)
        inputs = batch.loss_inputs
        states = {**states, **self.loss.next_states(states, inputs)}
        losses, gradients = self.loss.losses_and_gradients(inputs, states, batch.weights)
        gradients["logps"] = gradients.pop("sums")
        return BatchLossResult(batch.metrics(losses), gradients, states)
