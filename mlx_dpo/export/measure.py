"""What a policy does on held-out pairs, against its base: reward margin, accuracy, and KL a token from the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.data.batches import MicroBatch
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.network import Network
from mlx_dpo.model.policy import without_dropout
from mlx_dpo.model.token_logps import CHUNK_BYTES
from mlx_dpo.objectives import Loss
from mlx_dpo.training.evaluation import Scored, batches_of, mean_chosen_tokens, windows
from mlx_dpo.training.pair_sets import PairSet

ROWS_BYTES = 256 << 20  # of the adapter's hidden rows, kept for the KL; it is taken over the tokens that these hold


@dataclass(frozen=True)
class Measured:
    """A policy on the pairs.

    Attributes:
        margins: [pairs], reward of chosen minus that of rejected.
        accuracy: share of pairs whose chosen completion has the higher reward.
        kl: mean over completion tokens of KL(adapter || policy), nats; None where no adapter was measured before.
    """

    margins: np.ndarray
    accuracy: float
    kl: float | None

    @property
    def margin(self) -> float:
        """Mean reward margin."""
        return float(self.margins.mean())


@dataclass
class Yardstick:
    """Held-out pairs and what the base makes of them, to measure policies by.

    Attributes:
        batches: the micro-batches of each batch.
        base: [2 * pairs] log-probs by the base model of each micro-batch, the reference.
        rows: the adapter's hidden rows of the first micro-batches, each [tokens, hidden].
    """

    loss: Loss
    batches: list[list[MicroBatch]]
    base: list[np.ndarray] = field(default_factory=list)
    rows: list[mx.array] = field(default_factory=list)

    @classmethod
    def of(cls, loss: Loss, held_out: PairSet, batch_size: int, base: nn.Module) -> Yardstick:
        """Cut the pairs into micro-batches and run the base on them."""
        budget = Budget(Network.of(base))
        batches = [micros for _, micros in batches_of(held_out.pairs, windows(held_out.indices, batch_size), budget)]
        yardstick = cls(loss, batches)
        yardstick.base = [logps for logps, _ in yardstick._run(base)]
        return yardstick

    def first(self, pairs: int) -> Yardstick:
        """The first so many pairs alone, up to a whole batch, without the adapter's rows."""
        size = sum(len(micro.pairs) for micro in self.batches[0])
        batches = self.batches[: -(-pairs // size)]
        return Yardstick(self.loss, batches, self.base[: sum(map(len, batches))])

    def measure_base(self) -> Measured:
        """The base against itself."""
        return self._measured(self.base, None)

    def measure_adapter(self, model: nn.Module) -> Measured:
        """The policy that others are held against."""
        logps, held = [], 0
        for sums, rows in self._run(model):
            logps.append(sums)
            held += rows.nbytes
            if held <= ROWS_BYTES:
                self.rows.append(rows)
        return self._measured(logps, None)

    def measure(self, model: nn.Module) -> Measured:
        """A policy of the same architecture."""
        network, adapters, logps = Network.of(model), iter(self.rows), []
        kl, tokens = 0.0, 0
        for sums, rows in self._run(model, network):
            logps.append(sums)
            for adapter in islice(adapters, 1):
                kl += _kl(adapter, rows, network)
                tokens += len(rows)
        return self._measured(logps, max(0.0, kl / tokens) if tokens else None)

    def _run(self, model: nn.Module, network: Network | None = None) -> Iterator[tuple[np.ndarray, mx.array]]:
        """Log-probs and hidden rows of each micro-batch."""
        network = network or Network.of(model)
        with without_dropout(model):
            for micro in (micro for micros in self.batches for micro in micros):
                logps, rows = network.logps_and_rows(micro)
                yield logps.sums, rows

    def _measured(self, logps: Sequence[np.ndarray], kl: float | None) -> Measured:
        """From [2 * pairs] log-probs of each micro-batch."""
        rewards, start = [], 0
        for micros in self.batches:
            own = slice(start, start := start + len(micros))
            scored = Scored.of(micros, logps[own], self.base[own], mean_chosen_tokens(micros))
            rewards.append(self.loss.rewards(scored.logps, scored.reference, scored.tokens).reshape(2, -1))
        margins = np.subtract(*np.concatenate(rewards, axis=1))
        return Measured(margins, float((margins > 0).mean()), kl)


def _kl(adapter: mx.array, policy: mx.array, network: Network) -> float:
    """KL(adapter || policy) summed over tokens, from hidden rows, [tokens, hidden]; a few rows' logits at a time.

    Both have the network's head: adapters are inside the blocks.
    """
    total, size = 0.0, max(1, CHUNK_BYTES // (4 * network.vocabulary))
    for start in range(0, len(adapter), size):
        logits = (network.logits(rows[start : start + size]).astype(mx.float32) for rows in (adapter, policy))
        ours, theirs = (one - mx.logsumexp(one, axis=-1, keepdims=True) for one in logits)
        total += float((mx.exp(ours) * (ours - theirs)).sum().item())  # type: ignore[arg-type]
    return total
