"""The gradient of an optimizer batch's loss, a micro-batch at a time, whatever the loss looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.evaluation.metrics import METRICS
from mlx_dpo.evaluation.scored_batch import (
    BatchStatistics,
    OptimizerBatch,
    ScoredBatch,
    scoring_options,
    split_by_micro_batch,
)
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import ForwardTrace
from mlx_dpo.forward.policy import Policy
from mlx_dpo.objectives import LossStates, WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps


@dataclass(frozen=True)
class GradientComputer:
    """What gradients are made by."""

    policy: Policy
    budget: MemoryModel
    loss: WeightedLoss
    reference: ReferenceLogps
    communicator: Communicator
    seed: int

    def compute(
        self, batch: OptimizerBatch, step: int, running: LossStates
    ) -> tuple[Any, np.ndarray, dict[str, tuple[float, ...]]]:
        """The gradient of the batch's mean loss, its examples' metrics, and what the loss keeps of it.

        Of this rank's examples: over all ranks gradients add up. Where a pair's loss hangs on the other pairs', all
        log-probs come first, and a micro-batch is run once more for its gradient, with the same dropout.

        Args:
            running: what the loss keeps of the batches before.
        """
        gradients, rows, keeps = None, [np.zeros((0, len(METRICS)))], dict(running)
        loss, reference = self.loss, self.reference
        self._seed(step)
        facts = BatchStatistics.compute(batch, self.policy.network, reference, self.communicator)
        for together in [batch.micro_batches] if loss.whole_batch else [[micro] for micro in batch.micro_batches]:
            references = [reference.lookup(batch.example_indices(micro), micro) for micro in together]
            trace = self._trace(together[0]) if len(together) == 1 else None
            logps = [trace.logps] if trace else self._logps_before_trace(together, step)
            scored, own = (
                ScoredBatch.from_micro_batches(
                    together, logps, references, facts, loss, reference.completions_per_example
                ),
                slice(None),
            )
            if loss.whole_batch:
                scored, own = scored.gather(self.communicator)
            keeps |= loss.next_states(keeps, scored.loss_inputs)
            losses, slopes = loss.losses_and_gradients(scored.loss_inputs, keeps, scored.weights)
            rows.append(scored.metrics(losses)[own])
            shares = {kind: each / batch.size for kind, each in slopes.items()}
            for micro, weights in zip(together, split_by_micro_batch(shares, together, own), strict=True):
                part = (trace or self._trace(micro)).gradient(**weights)
                gradients = part if gradients is None else tree_map(mx.add, gradients, part)
                mx.eval(gradients)  # a micro-batch is evaluated on its own, or memory grows with the batch
        if gradients is None:  # other ranks have all examples
            gradients = tree_map(mx.zeros_like, self.policy.model.trainable_parameters())
        return gradients, np.concatenate(rows), keeps

    def _trace(self, micro: MicroBatch) -> ForwardTrace:
        more = scoring_options(self.loss, self.reference, micro)
        return self.policy.network.trace(micro, self.budget.num_checkpointed(micro), **more)

    def _logps_before_trace(self, micros: list[MicroBatch], step: int) -> list[CompletionLogps]:
        network = self.policy.network
        logps = [network.logps(micro, **scoring_options(self.loss, self.reference, micro)) for micro in micros]
        self._seed(step)
        return logps

    def _seed(self, step: int) -> None:
        """Have dropout depend on the step and whose examples they are alone: going on needs no random state."""
        rank = self.communicator.rank if self.communicator.data_parallel else 0
        mx.random.seed(int(np.random.SeedSequence([self.seed, step, rank]).generate_state(1, np.uint64)[0]))
