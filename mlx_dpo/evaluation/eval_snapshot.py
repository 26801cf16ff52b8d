"""Held-out examples as an evaluation left them, for whoever wants more of them than their means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.micro_batches import split_into_micro_batches
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.evaluation.measuring import ExampleMeasurement
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.policy import Policy, without_dropout
from mlx_dpo.reference.reference_policy import NoReference, SharedNetworkReference


@dataclass(frozen=True)
class EvalSnapshot:
    """An evaluation, example by example.

    Attributes:
        step: optimizer steps done.
        examples: what was measured of each.
        held_out: where they come from.
        policy: as it was measured.
    """

    step: int
    measurements: list[ExampleMeasurement]
    example_set: ExampleSet
    policy: Policy
    budget: MemoryModel

    @property
    def can_run_policy(self) -> bool:
        """Whether this process can run the policy by itself."""
        return self.policy.network.shards is None

    def kl(self, count: int) -> np.ndarray | None:
        """[examples, completions], nats: KL(policy || reference) of the first `count` examples.

        Of the two next-token distributions, whole and exact, summed over a completion's positions. Without a reference
        it is to the starting policy. None where neither is in memory (full fine-tuning, or another model's folder), and
        where the model is shared out: this is of one rank, and the others would have to run it too.
        """
        tensors = self._reference()
        if not tensors or not self.can_run_policy:
            return None
        encoded = [self.example_set.examples[one.index] for one in self.measurements[:count]]
        kls = np.empty((len(encoded), len(encoded[0].completions)))
        network = self.policy.network
        for micro in split_into_micro_batches(encoded, self.budget.fits):
            with without_dropout(network.model):
                rows = network.hidden_states(micro)
                with swap_adapter(network.model, tensors):
                    found = network.logps(micro, others=rows).kls
            kls[list(micro.batch_indices)] = found.reshape(micro.completions_per_example, -1).T
        return kls

    def _reference(self) -> Tensors:
        reference = self.example_set.reference.reference_policy
        if isinstance(reference, SharedNetworkReference):
            return reference.tensors
        return self.policy.initial_tensors if isinstance(reference, NoReference) else {}
