"""The reference policy's log-probs: each computed once, by the policy's own network, and kept for later runs."""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np

from mlx_dpo.adapters.interpolation import interpolate_adapters
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.reference.logp_cache import LogpCache, MainRankLogpCache


class ReferencePolicy:
    """A reference policy. As it is, one that is gone: all that was asked of it is known by now."""

    def sums(self, batch: MicroBatch) -> np.ndarray:
        """[sequences] log-probs, nats. Raises `UserError` where it is gone."""
        hint = "Use --reference initial, base or none, with lora or dora."
        raise UserError(
            "the loss asks the reference in every step, and it is not in memory", field="reference", hint=hint
        )

    def hidden_states(self, batch: MicroBatch) -> mx.array:
        """What its distributions are made of, under the policy's own head; see `Network.hidden_rows`."""
        hint = "Use --reference initial or base, with lora or dora."
        raise UserError("the loss compares distributions with one in memory", field="reference", hint=hint)


class NoReference(ReferencePolicy):
    """Log-ratios against nothing: its log-probs are taken as zero."""

    def sums(self, batch: MicroBatch) -> np.ndarray:
        return np.zeros(len(batch.sequences))


class SharedNetworkReference(ReferencePolicy):
    """The policy's network with other trained tensors, whatever it holds by then."""

    def __init__(self, network: Network, tensors: Tensors) -> None:
        self.network, self.tensors = network, tensors

    def sums(self, batch: MicroBatch) -> np.ndarray:
        with swap_adapter(self.network.model, self.tensors), without_dropout(self.network.model):
            return self.network.logps(batch).sums

    def hidden_states(self, batch: MicroBatch) -> mx.array:
        with swap_adapter(self.network.model, self.tensors), without_dropout(self.network.model):
            return self.network.hidden_states(batch)

    def soft_update(self, policy_tensors: Tensors, alpha: float) -> None:
        """Become a mixture: `mixup` of the policy with these tensors, the rest what it was."""
        self.tensors = interpolate_adapters(policy_tensors, self.tensors, alpha)


class CachedReference(SharedNetworkReference):
    """One that stays as it is: what is known of it from earlier runs is not computed again."""

    def __init__(self, network: Network, tensors: Tensors, model: str, known_fingerprint: str | None = None) -> None:
        """model: its name, for people. known_as: its fingerprint, where that is known."""
        super().__init__(network, tensors)
        with swap_adapter(network.model, tensors):
            known_fingerprint = known_fingerprint or fingerprint(network)
        shards = network.shards
        self.cache = (
            MainRankLogpCache(shards, known_fingerprint, model) if shards else LogpCache(known_fingerprint, model)
        )

    def sums(self, batch: MicroBatch) -> np.ndarray:
        return self.cache.get_or_compute(batch, super().sums)


class ReferenceLogps:
    """log pi_ref of every example's completions, computed when an example is first seen.

    Attributes:
        table: [examples, completions of each] float64, nats; NaN where not computed yet.
        policy: gives them for a micro-batch.
        seconds: what that took so far.
    """

    def __init__(self, examples: int, completions_per_example: int) -> None:
        self.table = np.full((examples, completions_per_example), np.nan)
        self.reference_policy = ReferencePolicy()
        self.seconds = 0.0

    @property
    def completions_per_example(self) -> int:
        """Completions of an example."""
        return self.table.shape[1]

    def lookup(self, indices: np.ndarray, batch: MicroBatch) -> np.ndarray:
        """[completions] of the examples `indices`, which are those in `batch`; of pairs, chosen then rejected."""
        self._grow(indices)
        if np.isnan(self.table[indices]).any():
            began = time.perf_counter()
            self.table[indices] = self.reference_policy.sums(batch).reshape(-1, len(indices)).T
            self.seconds += time.perf_counter() - began
        return self.table[indices].T.reshape(-1)

    def fill(self, indices: np.ndarray, logps: np.ndarray) -> None:
        """What another process has computed, [indices, completions of each]."""
        self._grow(indices)
        self.table[indices] = logps

    def _grow(self, indices: np.ndarray) -> None:
        """Makes room for examples that a batch source has added."""
        missing = int(indices.max(initial=-1)) + 1 - len(self.table)
        if missing > 0:
            self.table = np.pad(self.table, ((0, missing), (0, 0)), constant_values=np.nan)

    def clear(self) -> None:
        """The policy is another one now."""
        self.table[:] = np.nan
