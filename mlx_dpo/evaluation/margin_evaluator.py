"""What a policy does on held-out pairs, against its base: reward margin, accuracy, and KL a token from the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.evaluation.measuring import index_batches
from mlx_dpo.evaluation.scored_batch import optimizer_batches
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import WeightedLoss

ROWS_BYTES = 256 << 20  # of the adapter's hidden rows, kept for the KL; it is taken over the tokens that these hold


@dataclass(frozen=True)
class MarginMeasurement:
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
    def mean_margin(self) -> float:
        """Mean reward margin."""
        return float(self.margins.mean())


@dataclass
class MarginEvaluator:
    """Held-out pairs and what the base makes of them, to measure policies by.

    Attributes:
        batches: the micro-batches of each batch.
        base: [2 * pairs] log-probs by the base model of each micro-batch, the reference.
        rows: the adapter's hidden rows of the first micro-batches, each [tokens, hidden].
    """

    loss: WeightedLoss
    batches: list[list[MicroBatch]]
    base_logps: list[np.ndarray] = field(default_factory=list)
    adapter_hidden_states: list[mx.array] = field(default_factory=list)

    @classmethod
    def prepare(cls, loss: WeightedLoss, held_out: ExampleSet, batch_size: int, base: nn.Module) -> MarginEvaluator:
        """Cut the pairs into micro-batches and run the base on them."""
        budget = MemoryModel(Network.from_model(base))
        cut = optimizer_batches(held_out.examples, index_batches(held_out.indices, batch_size), budget, loss)
        yardstick = cls(loss, [batch.micro_batches for batch in cut])
        yardstick.base_logps = [logps.sums for logps in yardstick._run(base)]
        return yardstick

    def subset(self, pairs: int) -> MarginEvaluator:
        """The first so many pairs alone, up to a whole batch, without the adapter's rows."""
        size = sum(len(micro.batch_indices) for micro in self.batches[0])
        batches = self.batches[: -(-pairs // size)]
        return MarginEvaluator(self.loss, batches, self.base_logps[: sum(map(len, batches))])

    def measure_base(self) -> MarginMeasurement:
        """The base against itself."""
        return self._measured(self.base_logps, None)

    def measure_adapter(self, model: nn.Module) -> MarginMeasurement:
        """The policy that others are held against."""
        network, held = Network.from_model(model), 0
        for micro in self._micros:
            rows = network.hidden_states(micro)
            held += rows.nbytes
            if held > ROWS_BYTES:
                break
            self.adapter_hidden_states.append(rows)
        return self._measured([logps.sums for logps in self._run(model)], None)

    def measure(self, policy: nn.Module) -> MarginMeasurement:
        """A policy of the same architecture, whose head is the adapter's: adapters are inside the blocks."""
        found = list(self._run(policy, self.adapter_hidden_states))
        compared = [logps for logps in found if logps.token_kls is not None]
        tokens = sum(len(logps.token_logps) for logps in compared)
        kl = sum(float(logps.kls.sum()) for logps in compared) / tokens if tokens else None
        return self._measured([logps.sums for logps in found], None if kl is None else max(0.0, kl))

    @property
    def _micros(self) -> Iterator[MicroBatch]:
        return (micro for micros in self.batches for micro in micros)

    def _run(self, model: nn.Module, others: Sequence[mx.array] = ()) -> Iterator[CompletionLogps]:
        """Log-probs of each micro-batch, and the KL from others' hidden rows where there are some."""
        network = Network.from_model(model)
        with without_dropout(model):
            for micro, rows in zip_longest(self._micros, others):
                yield network.logps(micro, others=rows)

    def _measured(self, logps: Sequence[np.ndarray], kl: float | None) -> MarginMeasurement:
        """From [2 * pairs] log-probs of each micro-batch."""
        rewards = []
        for micro, own, base in zip(self._micros, logps, self.base_logps, strict=True):
            tokens = np.array([len(completion) for _, completion in micro.sequences])
            rewards.append(self.loss.rewards(own, base, tokens).reshape(2, -1))
        margins = np.subtract(*np.concatenate(rewards, axis=1))
        return MarginMeasurement(margins, float((margins > 0).mean()), kl)
