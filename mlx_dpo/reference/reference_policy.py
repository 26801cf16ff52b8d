"""The reference policy and the table of its log-probs."""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.adapters.interpolation import interpolate_adapters
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.swap import swap_adapter
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.errors import UserError
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.reference.logp_cache import LogpCache, MainRankLogpCache


class ReferencePolicy:
    """A source of reference log-probs. The base class is a reference that is not in memory: its methods raise."""

    def sums(self, batch: MicroBatch, policy_sums: np.ndarray | None = None) -> np.ndarray:
        """Log-probs of a micro-batch's completions.

        Args:
            batch: the micro-batch.
            policy_sums: [sequences] those of the policy without dropout, if known, which are the reference's before
                the first update.

        Returns:
            [sequences] float64, nats, each summed over the tokens of a completion.

        Raises:
            UserError: the reference is not in memory.
        """
        hint = "Use --reference initial, base or none, with lora or dora."
        message = "the loss needs the reference in every step, and it is not in memory"
        raise UserError(message, field="reference", hint=hint)

    def token_logps(self, batch: MicroBatch) -> np.ndarray:
        """[tokens] log-probs of a micro-batch's completion tokens, nats, in the order of the policy's.

        Raises:
            UserError: the reference is not in memory.
        """
        hint = "Use --reference initial or base, with lora or dora."
        message = "the loss needs the reference's log-probs by token, and it is not in memory"
        raise UserError(message, field="reference", hint=hint)

    def hidden_states(self, batch: MicroBatch) -> mx.array:
        """Hidden states for the policy's head, from which `Network.logps` computes the KL to the reference.

        Returns:
            [tokens, hidden], a row for each completion token.

        Raises:
            UserError: the reference is not in memory.
        """
        hint = "Use --reference initial or base, with lora or dora."
        message = "the loss needs the reference's distributions, and it is not in memory"
        raise UserError(message, field="reference", hint=hint)


class NoReference(ReferencePolicy):
    """No reference: its log-probs are zero, so that log-ratios are the policy's log-probs."""

    def sums(self, batch: MicroBatch, policy_sums: np.ndarray | None = None) -> np.ndarray:
        """[sequences]; see `ReferencePolicy.sums`."""
        return np.zeros(len(batch.sequences))


class SharedNetworkReference(ReferencePolicy):
    """The policy's network, run with other trained tensors.

    Attributes:
        network: the policy's network.
        tensors: the reference's values of the trained tensors.
    """

    def __init__(self, network: Network, tensors: Tensors) -> None:
        self.network, self.tensors = network, tensors
        self._latest: tuple[MicroBatch, CompletionLogps] | None = None  # sums and token_logps are of the same batch

    def is_policy(self) -> bool:
        """Whether the network's tensors are the reference's own: nothing was updated or loaded since."""
        current = dict(tree_flatten(self.network.model.parameters()))
        return all(current.get(name) is tensor for name, tensor in self.tensors.items())

    def sums(self, batch: MicroBatch, policy_sums: np.ndarray | None = None) -> np.ndarray:
        """[sequences]; see `ReferencePolicy.sums`."""
        if policy_sums is not None and self.is_policy():
            return policy_sums
        return self._logps(batch).sums

    def token_logps(self, batch: MicroBatch) -> np.ndarray:
        """[tokens]; see `ReferencePolicy.token_logps`."""
        return self._logps(batch).token_logps.astype(np.float64)

    def _logps(self, batch: MicroBatch) -> CompletionLogps:
        if self._latest is None or self._latest[0] is not batch:
            with swap_adapter(self.network.model, self.tensors), without_dropout(self.network.model):
                self._latest = batch, self.network.logps(batch)
        return self._latest[1]

    def hidden_states(self, batch: MicroBatch) -> mx.array:
        """[tokens, hidden]; see `ReferencePolicy.hidden_states`."""
        with swap_adapter(self.network.model, self.tensors), without_dropout(self.network.model):
            return self.network.hidden_states(batch)

    def soft_update(self, policy_tensors: Tensors, alpha: float) -> None:
        """Move the reference towards the policy: alpha * policy + (1 - alpha) * reference; see `interpolation`."""
        self.tensors, self._latest = interpolate_adapters(policy_tensors, self.tensors, alpha), None


class CachedReference(SharedNetworkReference):
    """A reference that never changes: log-probs from earlier runs are read from disk.

    Attributes:
        cache: the log-probs on disk.
    """

    def __init__(self, network: Network, tensors: Tensors, model: str, known_fingerprint: str | None = None) -> None:
        """Open the cache of this reference.

        Args:
            network: the network to run.
            tensors: the reference's values of the trained tensors.
            model: the model's name, which `mlx-dpo cache` shows.
            known_fingerprint: the reference's fingerprint, if it need not be computed.
        """
        super().__init__(network, tensors)
        with swap_adapter(network.model, tensors):
            name = known_fingerprint or fingerprint(network)
        shards = network.shards
        self.cache = MainRankLogpCache(shards, name, model) if shards else LogpCache(name, model)

    def sums(self, batch: MicroBatch, policy_sums: np.ndarray | None = None) -> np.ndarray:
        """[sequences]; see `ReferencePolicy.sums`."""
        compute = super().sums
        return self.cache.get_or_compute(batch, lambda batch: compute(batch, policy_sums))


class ReferenceLogps:
    """The reference's log-probs of every example's completions, computed when an example is first looked up.

    Attributes:
        table: [examples, completions of each] float64, nats; NaN if not computed yet.
        reference_policy: computes the log-probs of a micro-batch.
        seconds: the time spent computing them.
    """

    def __init__(self, examples: int, completions_per_example: int) -> None:
        self.table = np.full((examples, completions_per_example), np.nan)
        self.reference_policy = ReferencePolicy()
        self.seconds = 0.0

    @property
    def completions_per_example(self) -> int:
        """2 for pairs, 1 for single completions."""
        return self.table.shape[1]

    def lookup(self, indices: np.ndarray, batch: MicroBatch, policy_sums: np.ndarray | None = None) -> np.ndarray:
        """Log-probs of the examples of a micro-batch.

        Args:
            indices: [examples], their rows in the table.
            batch: the examples.
            policy_sums: [sequences] see `ReferencePolicy.sums`.

        Returns:
            [sequences] float64, nats; of pairs, all chosen completions, then all rejected ones.
        """
        self._grow(indices)
        if np.isnan(self.table[indices]).any():
            start = time.perf_counter()
            self.table[indices] = self.reference_policy.sums(batch, policy_sums).reshape(-1, len(indices)).T
            self.seconds += time.perf_counter() - start
        return self.table[indices].T.reshape(-1)

    def fill(self, indices: np.ndarray, logps: np.ndarray) -> None:
        """Store log-probs computed elsewhere, [examples, completions of each], in the rows `indices`."""
        self._grow(indices)
        self.table[indices] = logps

    def _grow(self, indices: np.ndarray) -> None:
        """Make room for examples that a batch source has added."""
        missing = int(indices.max(initial=-1)) + 1 - len(self.table)
        if missing > 0:
            self.table = np.pad(self.table, ((0, missing), (0, 0)), constant_values=np.nan)

    def clear(self) -> None:
        """Forget all log-probs, since the reference has changed."""
        self.table[:] = np.nan
