"""Held-out examples as an evaluation measured them, for listeners that need more than mean metrics."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.evaluation.measuring import ExampleMeasurement, measure
from mlx_dpo.evaluation.metrics import METRICS
from mlx_dpo.evaluation.row_batches import row_batches
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import Policy
from mlx_dpo.forward.reward_network import RewardNetwork
from mlx_dpo.reference.reference_policy import NoReference, SharedNetworkReference

NUM_KL_EXAMPLES = 16  # held-out examples whose KL is measured; each takes two forward passes in an evaluation


@dataclass
class EvalSnapshot:
    """An evaluation during training, example by example.

    Attributes:
        step: optimizer steps done.
        measurements: of the held-out examples.
        example_set: the held-out examples.
        policy: as it was measured.
        memory_model: of the policy.
        metric_names: of the measurements' metrics.
        sampling_seconds: time spent on generating completions for it; a listener that does so adds its own.
    """

    step: int
    measurements: list[ExampleMeasurement]
    example_set: ExampleSet
    policy: Policy
    memory_model: MemoryModel
    metric_names: tuple[str, ...] = METRICS
    sampling_seconds: float = 0.0

    @property
    def can_run_policy(self) -> bool:
        """Whether this process can run the policy by itself: it has all of its weights."""
        return self.policy.network.shards is None

    @property
    def is_reward_model(self) -> bool:
        """Whether the measurements are rewards of a head: there are no log-probs, and nothing to sample."""
        return isinstance(self.policy.network, RewardNetwork)

    def kl(self, count: int) -> np.ndarray | None:
        """KL(policy || reference) of the first `count` examples, exact over the vocabulary.

        Returns:
            [examples, completions] nats, summed over a completion's tokens. Without a reference it is the KL to the
            initial policy. None if neither is in memory (full fine-tuning, or another model's folder), if ranks share
            the model, since this is called on one rank, or for a reward model.
        """
        tensors = self._reference_tensors()
        if not tensors or not self.can_run_policy:
            return None
        indices = np.array([measurement.index for measurement in self.measurements[:count]])
        if self.step == 0 and _are_equal(tensors, trainable_tensors(self.policy.model)):
            return np.zeros((len(indices), self.example_set.reference.completions_per_example))
        network = self.policy.network
        policy = SharedNetworkReference(network, trainable_tensors(network.model))
        with swap_adapter(network.model, tensors):
            (measurements,) = measure(
                row_batches(self.example_set.examples, [indices], self.memory_model),
                network,
                options=lambda micro: {"reference_hidden_states": policy.hidden_states(micro)},
            )
        kls = {measurement.index: measurement.kls for measurement in measurements}
        return np.array([kls[index] for index in indices])

    def _reference_tensors(self) -> Tensors:
        reference = self.example_set.reference.reference_policy
        if isinstance(reference, SharedNetworkReference):
            return reference.tensors
        return self.policy.initial_tensors if isinstance(reference, NoReference) else {}


def _are_equal(tensors: Tensors, others: Tensors) -> bool:
    return all(mx.array_equal(tensor, others[name]).item() for name, tensor in tensors.items())
