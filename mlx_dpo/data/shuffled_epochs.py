"""Which examples each optimizer step trains on, and which are held out.

The order of an epoch follows from the seed and the epoch's number, so resuming needs no other state than the step.
"""

from __future__ import annotations

import numpy as np


class ShuffledEpochs:
    """Batches of examples, reshuffled each epoch; the last batch of an epoch may be smaller.

    Args:
        examples: the indices to draw from, or their number.
        batch_size: examples of an optimizer step.
        seed: determines the order.
    """

    def __init__(self, examples: np.ndarray | int, batch_size: int, seed: int) -> None:
        self.indices = np.arange(examples) if isinstance(examples, int) else examples
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = -(-len(self.indices) // batch_size)
        self._shuffled: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> np.ndarray:
        """The indices of the examples of a step, counted from 0 over all epochs."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self._shuffled_indices(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _shuffled_indices(self, epoch: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._shuffled = (epoch, rng.permutation(self.indices))
        return self._shuffled[1]


def split_held_out(total: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and indices to hold out, both in file order.

    Args:
        total: the number of examples.
        count: how many to hold out; at most a tenth of all are.
        seed: determines which.
    """
    count = min(count, total // 10)
    order = np.random.default_rng([seed, 2**32]).permutation(total)
    return np.sort(order[count:]), np.sort(order[:count])
