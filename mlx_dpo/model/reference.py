"""The reference policy's log-probs: each pair's computed once, by the policy's own network, and kept for later runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mlx_dpo.data.batches import MicroBatch
from mlx_dpo.model.fingerprint import fingerprint
from mlx_dpo.model.loading import Tensors
from mlx_dpo.model.logp_cache import LogpCache
from mlx_dpo.model.network import Network
from mlx_dpo.model.policy import policy_as, without_dropout

Compute = Callable[[MicroBatch], np.ndarray]  # to [2 * pairs], chosen then rejected, nats


def all_known(batch: MicroBatch) -> np.ndarray:
    """Stands where nothing is left to compute."""
    raise RuntimeError("a pair's reference log-probs are asked for and no reference policy is connected")


class ReferenceLogps:
    """log pi_ref of every pair's two completions, computed when a pair is first seen.

    Attributes:
        table: [pairs, 2] float64, chosen and rejected, nats; NaN where not computed yet.
        compute: gives them for a micro-batch.
    """

    def __init__(self, pairs: int, compute: Compute = all_known) -> None:
        self.table = np.full((pairs, 2), np.nan)
        self.compute = compute

    def of(self, indices: np.ndarray, batch: MicroBatch) -> np.ndarray:
        """[2 * pairs], chosen then rejected, of the pairs `indices`, which are those in `batch`."""
        if np.isnan(self.table[indices]).any():
            self.table[indices] = self.compute(batch).reshape(2, len(indices)).T
        return self.table[indices].T.reshape(-1)


def same_network(network: Network, tensors: Tensors, model: str) -> Compute:
    """The reference is `network` with these trained tensors, whatever it holds by then.

    What is known of it from earlier runs is not computed again; `model` is its name, for people.
    """
    with policy_as(network.model, tensors):
        known = LogpCache(fingerprint(network), model)

    def compute(batch: MicroBatch) -> np.ndarray:
        with policy_as(network.model, tensors), without_dropout(network.model):
            return network.logps(batch).sums

    return lambda batch: known.of(batch, compute)


def no_reference(batch: MicroBatch) -> np.ndarray:
    """Log-ratios against nothing: the reference's log-probs are taken as zero."""
    return np.zeros(len(batch.sequences))
