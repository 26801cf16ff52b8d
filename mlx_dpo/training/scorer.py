"""The `Scorer` protocol, and its implementation by completion log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data.micro_batches import MicroBatch, split_into_micro_batches
from mlx_dpo.distributed.communicator import Arrays, Communicator
from mlx_dpo.evaluation.example_sets import TRAIN
from mlx_dpo.evaluation.optimizer_batch import IndexedExample, OptimizerBatch, make_optimizer_batch
from mlx_dpo.evaluation.scored_batch import BatchStatistics, completion_outputs, scoring_options
from mlx_dpo.forward.forward_trace import ForwardTrace
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import Policy
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps, SharedNetworkReference
from mlx_dpo.training.checkpoint import ComponentState

DEFAULT_REFERENCE_MIXUP = 0.6  # TR-DPO's alpha (Gorbatovski et al. 2024, arXiv 2404.09656)


class ForwardPass(Protocol):
    """A micro-batch's forward pass, ready for its backward pass.

    Attributes:
        outputs: inputs of the loss, by name, each [sequences, ...].
    """

    outputs: Arrays

    def backward(self, gradients: Arrays) -> Any:
        """Compute the gradient of the trainable parameters.

        Args:
            gradients: the loss's gradient with respect to `outputs`, by name, with their shapes.

        Returns:
            A tree like the model's trainable parameters.
        """
        ...


class Scorer(Protocol):
    """Runs the trained model over micro-batches. Subclass it for the defaults.

    Attributes:
        model: the model; its trainable parameters are what the optimizer updates.
        reference_seconds: time spent so far on a reference model.
    """

    model: nn.Module
    reference_seconds: float = 0.0

    def make_batch(self, examples: Sequence[IndexedExample], communicator: Communicator) -> OptimizerBatch:
        """Split this rank's share of an optimizer batch into micro-batches; a single one by default.

        Runs ahead in a thread if the batch source can be prefetched.

        Args:
            examples: those of the whole optimizer batch.
            communicator: says which of them are this rank's.
        """
        local = communicator.local_items(examples)
        micro_batches = split_into_micro_batches([example.encoded for example in local], lambda micro: True)
        return OptimizerBatch(len(examples), local, micro_batches)

    def batch_statistics(self, batch: OptimizerBatch, communicator: Communicator) -> Any:
        """Return the statistics of the whole optimizer batch that the loss needs; None by default.

        Args:
            batch: this rank's share of the examples; none of them has been run.
            communicator: ranks that share the batch.
        """

    def outputs(self, micro_batch: MicroBatch, indices: np.ndarray) -> Arrays:
        """Run a micro-batch without keeping what a gradient needs.

        Args:
            micro_batch: the sequences.
            indices: [examples], positions of its examples in the dataset.

        Returns:
            Inputs of the loss, by name, each [sequences, ...].
        """
        ...

    def forward(self, micro_batch: MicroBatch, indices: np.ndarray) -> ForwardPass:
        """Run a micro-batch and keep what its gradient needs.

        Args:
            micro_batch: the sequences.
            indices: [examples], positions of its examples in the dataset.
        """
        ...

    def shared_values(self, indices: np.ndarray) -> Arrays:
        """Return per-example values to share with other ranks, each [examples, ...]; nothing by default."""
        return {}

    def receive_values(self, indices: np.ndarray, values: Arrays) -> None:
        """Take the `shared_values` of all ranks.

        Args:
            indices: [examples], of the whole optimizer batch.
            values: arrays [examples, ...].
        """
        return

    def after_step(self, step: int) -> None:
        """Update the scorer after an optimizer step; does nothing by default.

        Args:
            step: optimizer steps done.
        """
        return

    def state(self) -> ComponentState:
        """Return the state that a checkpoint stores beside the trainable parameters; empty by default."""
        return ComponentState()

    def restore(self, state: ComponentState) -> None:
        """Continue from a checkpoint.

        Args:
            state: what `state` returned when it was written.
        """
        return


class CompletionForward(ForwardPass):
    """A forward pass whose outputs are completion log-probabilities."""

    def __init__(self, trace: ForwardTrace, outputs: Arrays) -> None:
        """Create it.

        Args:
            trace: the network's forward pass.
            outputs: inputs of the loss, by name, each [completions].
        """
        self.trace, self.outputs = trace, outputs

    def backward(self, gradients: Arrays) -> Any:
        """Compute the gradient of the trainable parameters; see `ForwardPass`."""
        return self.trace.gradient(
            gradients["logps"], gradients.get("plain"), gradients.get("kls"), gradients.get("kl_scores")
        )


@dataclass(frozen=True)
class ReferenceSync:
    """How often and how far the reference follows the policy (TR-DPO; Gorbatovski et al. 2024, arXiv 2404.09656).

    Attributes:
        steps: optimizer steps between its updates.
        mixup: alpha in reference = alpha * policy + (1 - alpha) * reference.
    """

    steps: int
    mixup: float = DEFAULT_REFERENCE_MIXUP


class CompletionLogProbScorer(Scorer):
    """Scores completions by their log-probabilities under the policy and the reference.

    The outputs are those of `completion_outputs`, each [completions].
    """

    def __init__(
        self,
        policy: Policy,
        memory_model: MemoryModel,
        loss: WeightedLoss,
        references: Mapping[str, ReferenceLogps],
        max_length: int,
        sync: ReferenceSync | None = None,
    ) -> None:
        """Make a scorer.

        Args:
            policy: the policy.
            memory_model: decides how large a micro-batch may be, and how many of its layers are recomputed.
            loss: decides which outputs are needed.
            references: reference log-probs by example set; those to train on are "train".
            max_length: longest prompt + completion, in tokens.
            sync: how the reference follows the policy; None if it is fixed.
        """
        self.network, self.model, self.memory_model = policy.network, policy.model, memory_model
        self.loss, self.references, self.max_length, self.sync = loss, references, max_length, sync
        self.reference = references[TRAIN]

    @property
    def reference_seconds(self) -> float:  # type: ignore[override]
        """Time spent so far on the reference log-probs of the examples to train on."""
        return self.reference.seconds

    @property
    def moving_reference(self) -> SharedNetworkReference | None:
        """The reference if it follows the policy, else None."""
        reference = self.reference.reference_policy
        return reference if self.sync and isinstance(reference, SharedNetworkReference) else None

    def make_batch(self, examples: Sequence[IndexedExample], communicator: Communicator) -> OptimizerBatch:
        """Split this rank's share of an optimizer batch into micro-batches that fit in memory."""
        return make_optimizer_batch(examples, self.memory_model, self.loss, self.max_length, communicator)

    def batch_statistics(self, batch: OptimizerBatch, communicator: Communicator) -> BatchStatistics:
        """Compute mean lengths and, if the loss needs it, the batch's KL."""
        return BatchStatistics.compute(batch, self.network, self.reference, communicator)

    def outputs(self, micro_batch: MicroBatch, indices: np.ndarray) -> Arrays:
        """Compute log-probabilities without keeping what a gradient needs; see `Scorer`."""
        reference = self.reference.lookup(indices, micro_batch)
        options = scoring_options(self.loss, self.reference, micro_batch)
        return completion_outputs(self.network.logps(micro_batch, **options), reference, self.loss)

    def forward(self, micro_batch: MicroBatch, indices: np.ndarray) -> CompletionForward:
        """Compute log-probabilities, ready for the gradient; see `Scorer`."""
        reference = self.reference.lookup(indices, micro_batch)
        options = scoring_options(self.loss, self.reference, micro_batch)
        trace = self.network.trace(micro_batch, self.memory_model.num_checkpointed(micro_batch), **options)
        return CompletionForward(trace, completion_outputs(trace.logps, reference, self.loss))

    def shared_values(self, indices: np.ndarray) -> Arrays:
        """Return the examples' reference log-probs, so that every rank knows all of them."""
        return {"reference": self.reference.table[indices]}

    def receive_values(self, indices: np.ndarray, values: Arrays) -> None:
        """Enter the reference log-probs of all ranks into the table."""
        self.reference.fill(indices, values["reference"])

    def after_step(self, step: int) -> None:
        """Move the reference towards the policy when due; its log-probs are then computed again."""
        if self.sync and self.moving_reference and step % self.sync.steps == 0:
            self.moving_reference.soft_update(trainable_tensors(self.model), self.sync.mixup)
            for reference in self.references.values():
                reference.clear()

    def state(self) -> ComponentState:
        """Return the reference log-probs known so far, and the reference's tensors if it moves."""
        tables = {name: reference.table for name, reference in self.references.items()}
        return ComponentState(arrays=tables, tensors=self.moving_reference.tensors if self.moving_reference else {})

    def restore(self, state: ComponentState) -> None:
        """Continue with the reference log-probs that are known, and with the reference's tensors if it moves."""
        for name, table in state.arrays.items():
            self.references[name].table = table
        if self.moving_reference and state.tensors:
            self.moving_reference.tensors = state.tensors
