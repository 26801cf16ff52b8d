"""Held-out examples as an evaluation left them, for whoever wants more of them than their means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.swap import policy_as
from mlx_dpo.data.micro_batches import micro_batches
from mlx_dpo.evaluation.example_sets import PairSet
from mlx_dpo.evaluation.measuring import Measured
from mlx_dpo.forward.memory_model import Budget
from mlx_dpo.forward.policy import Policy, without_dropout
from mlx_dpo.reference.reference_policy import NoReference, SameNetwork


@dataclass(frozen=True)
class HeldOut:
    """An evaluation, example by example.

    Attributes:
        step: optimizer steps done.
        examples: what was measured of each.
        held_out: where they come from.
        policy: as it was measured.
    """

    step: int
    examples: list[Measured]
    held_out: PairSet
    policy: Policy
    budget: Budget

    @property
    def can_run(self) -> bool:
        """Whether this process can run the policy by itself."""
        return self.policy.network.shards is None

    def kl(self, count: int) -> np.ndarray | None:
        """[examples, completions], nats: KL(policy || reference) of the first `count` examples.

        Of the two next-token distributions, whole and exact, summed over a completion's positions. Without a reference
        it is to the starting policy. None where neither is in memory (full fine-tuning, or another model's folder), and
        where the model is shared out: this is of one rank, and the others would have to run it too.
        """
        tensors = self._reference()
        if not tensors or not self.can_run:
            return None
        encoded = [self.held_out.pairs[one.index] for one in self.examples[:count]]
        kls = np.empty((len(encoded), len(encoded[0].completions)))
        network = self.policy.network
        for micro in micro_batches(encoded, self.budget.fits):
            with without_dropout(network.model):
                rows = network.hidden_rows(micro)
                with policy_as(network.model, tensors):
                    found = network.logps(micro, others=rows).kls
            kls[list(micro.positions)] = found.reshape(micro.sides, -1).T
        return kls

    def _reference(self) -> Tensors:
        reference = self.held_out.reference.policy
        if isinstance(reference, SameNetwork):
            return reference.tensors
        return self.policy.initial if isinstance(reference, NoReference) else {}
