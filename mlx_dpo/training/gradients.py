"""The gradient of an optimizer batch's mean loss, accumulated over micro-batches, for any scorer and loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed.communicator import Arrays, Communicator
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch
from mlx_dpo.evaluation.scored_batch import split_by_micro_batch
from mlx_dpo.objectives import LossStates
from mlx_dpo.training.batch_loss import BatchLoss
from mlx_dpo.training.scorer import Scorer


@dataclass(frozen=True)
class GradientComputer:
    """Computes the gradients of optimizer batches.

    Attributes:
        scorer: runs the model over micro-batches.
        loss: turns the scorer's outputs into losses and gradients.
        communicator: ranks that share a batch.
        seed: the run's seed; dropout depends on it, the step and the rank.
    """

    scorer: Scorer
    loss: BatchLoss
    communicator: Communicator
    seed: int

    def compute(
        self, batch: OptimizerBatch, step: int, states: LossStates
    ) -> tuple[Any, np.ndarray, dict[str, tuple[float, ...]]]:
        """Compute this rank's part of the gradient; the sum over all ranks is that of the batch's mean loss.

        If an example's loss depends on the others of the batch, all outputs are computed first, and each
        micro-batch is run again for its gradient, with the same dropout.

        Args:
            batch: this rank's examples in micro-batches, each with [sequences] of token ids.
            step: optimizer steps done.
            states: running state of the loss before this batch.

        Returns:
            The gradient, a tree like the model's trainable parameters; metrics of this rank's examples, [examples,
            metric names]; and the loss's running state after this batch.
        """
        self.seed_dropout(step)
        scorer, loss = self.scorer, self.loss
        statistics = scorer.batch_statistics(batch, self.communicator)
        gradients, metrics, new_states = None, [np.zeros((0, len(loss.metric_names)))], dict(states)
        for group in [batch.micro_batches] if loss.whole_batch else [[micro] for micro in batch.micro_batches]:
            inputs = [(micro, batch.example_indices(micro)) for micro in group]
            forward = scorer.forward(*inputs[0]) if len(group) == 1 else None
            outputs = [forward.outputs] if forward else self._outputs(inputs, step)
            columns, local = loss.columns(group, outputs), slice(None)
            if loss.whole_batch:
                columns, local = self.communicator.gather_and_concatenate(columns)
            result = loss(columns, statistics, new_states)
            new_states = result.states
            metrics.append(result.metrics[local])
            shares = {name: values / batch.size for name, values in result.gradients.items()}
            for example, upstream in zip(inputs, split_by_micro_batch(shares, group, local), strict=True):
                part = (forward or scorer.forward(*example)).backward(upstream)
                gradients = part if gradients is None else tree_map(mx.add, gradients, part)
                mx.eval(gradients)  # micro-batch by micro-batch, or memory grows with the batch
        if gradients is None:  # other ranks have all examples
            gradients = tree_map(mx.zeros_like, scorer.model.trainable_parameters())
        return gradients, np.concatenate(metrics), new_states

    def _outputs(self, inputs: Sequence[tuple[MicroBatch, np.ndarray]], step: int) -> list[Arrays]:
        outputs = [self.scorer.outputs(*micro) for micro in inputs]
        self.seed_dropout(step)
        return outputs

    def seed_dropout(self, step: int) -> None:
        """Seed dropout by the run's seed, the step and the rank alone, so that resuming needs no random state."""
        rank = self.communicator.rank if self.communicator.data_parallel else 0
        mx.random.seed(int(np.random.SeedSequence([self.seed, step, rank]).generate_state(1, np.uint64)[0]))
