"""The scorer of a policy gradient: log-probs and values, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed.communicator import Arrays, Communicator
from mlx_dpo.evaluation.optimizer_batch import IndexedExample, OptimizerBatch, make_optimizer_batch
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.forward_trace import ForwardTrace
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import Policy, without_dropout
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.training.scorer import ForwardPass, Scorer


class TokenForward(ForwardPass):
    """A forward pass whose outputs are `logps` and `values`, [completions, tokens]."""

    def __init__(self, trace: ForwardTrace) -> None:
        """Create it.

        Args:
            trace: the network's forward pass.
        """
        self.trace, self.outputs = trace, token_outputs(trace.logps)

    def backward(self, gradients: Arrays) -> Any:
        """Compute the gradient of the trainable parameters; see `ForwardPass`."""
        places = self.trace.logps.token_positions
        values = None if self.trace.logps.token_values is None else gradients["values"][places]
        return self.trace.token_gradient(gradients["logps"][places], values)


class PolicyGradientScorer(Scorer):
    """Computes log-probs of sampled tokens, and values of the states before them. Dropout is off, as in TRL's PPO."""

    def __init__(self, policy: Policy, memory_model: MemoryModel, loss: WeightedLoss, max_length: int) -> None:
        """Make a scorer.

        Args:
            policy: the policy.
            memory_model: decides how large a micro-batch may be, and how many of its layers are recomputed.
            loss: the loss.
            max_length: longest prompt + completion, in tokens.
        """
        self.network, self.model, self.memory_model = policy.network, policy.model, memory_model
        self.loss, self.max_length = loss, max_length

    def make_batch(self, examples: Sequence[IndexedExample], communicator: Communicator) -> OptimizerBatch:
        """Split this rank's share of an optimizer batch into micro-batches that fit in memory."""
        return make_optimizer_batch(examples, self.memory_model, self.loss, self.max_length, communicator)

    def batch_statistics(self, batch: OptimizerBatch, communicator: Communicator) -> float:
        """Return the mean length of the optimizer batch's completions, in tokens."""
        num_tokens = sum(int(micro.trained_lengths.sum()) for micro in batch.micro_batches)
        shards = communicator.gather_shards({"tokens": np.array([num_tokens])})
        return sum(int(shard["tokens"][0]) for shard in shards) / batch.size

    def outputs(self, micro_batch: MicroBatch, indices: np.ndarray) -> Arrays:
        """Compute log-probs and values without keeping what a gradient needs; see `Scorer`."""
        with without_dropout(self.model):
            return token_outputs(self.network.logps(micro_batch))

    def forward(self, micro_batch: MicroBatch, indices: np.ndarray) -> TokenForward:
        """Compute log-probs and values, ready for the gradient; see `Scorer`."""
        with without_dropout(self.model):
            return TokenForward(self.network.trace(micro_batch, self.memory_model.num_checkpointed(micro_batch)))


def token_outputs(logps: CompletionLogps) -> Arrays:
    """Return `logps` and `values`, [completions, tokens] float64, padded with 0; values are 0 without a head."""
    places = logps.token_positions
    shape = logps.num_sequences, int(places[1].max()) + 1
    outputs = {"logps": np.zeros(shape), "values": np.zeros(shape)}
    outputs["logps"][places] = logps.token_logps
    if logps.token_values is not None:
        outputs["values"][places] = logps.token_values
    return outputs
