"""Measures what a fused model keeps of an adapter: reward margins, accuracy and KL on held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.evaluation.measuring import ExampleMeasurement, measure
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch, optimizer_batches
from mlx_dpo.evaluation.row_batches import index_batches
from mlx_dpo.forward.completion_logps import LogpOptions
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.objectives import WeightedLoss
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

MAX_HIDDEN_STATES_BYTES = 256 << 20  # of the adapter, kept for the KL; it is measured on the tokens that these cover


@dataclass(frozen=True)
class MarginMeasurement:
    """A policy on the held-out pairs.

    Attributes:
        margins: [pairs], reward of the chosen minus that of the rejected completion.
        accuracy: share of pairs whose chosen completion has the higher reward.
        kl: mean over completion tokens of KL(adapter || policy), nats; None if no adapter was measured before.
    """

    margins: np.ndarray
    accuracy: float
    kl: float | None

    @property
    def mean_margin(self) -> float:
        """Mean of the margins."""
        return float(self.margins.mean())


@dataclass
class MarginEvaluator:
    """Held-out pairs with the base model's log-probs, to measure other policies on.

    Attributes:
        loss: gives the rewards.
        batches: the pairs.
        base: the base model's measurements, which are the reference.
        adapter_hidden_states: of the adapter, [tokens, hidden] for each of the first micro-batches; logits, [tokens,
            vocabulary], if the adapter's network has no head split.
        adapter_sharing: how the adapter was run; None until it is measured.
        adapter_has_split: whether the adapter was run as body and head.
        progress: receives the number of pairs measured so far.
    """

    loss: WeightedLoss
    batches: list[OptimizerBatch]
    base: list[ExampleMeasurement] = field(default_factory=list)
    adapter_hidden_states: list[mx.array] = field(default_factory=list)
    adapter_sharing: PromptSharing | None = None
    adapter_has_split: bool = False
    progress: Progress = NO_PROGRESS

    @classmethod
    def prepare(
        cls,
        loss: WeightedLoss,
        held_out: ExampleSet,
        batch_size: int,
        base: nn.Module,
        progress: Progress = NO_PROGRESS,
        *,
        use_cache: bool = False,
    ) -> MarginEvaluator:
        """Split the pairs into micro-batches and measure the base model.

        Args:
            loss: gives the rewards.
            held_out: the pairs.
            batch_size: pairs that are measured together.
            base: the base model.
            progress: receives what is being measured.
            use_cache: whether it was loaded from files; see `Network.from_model`.
        """
        network = Network.from_model(base, use_cache=use_cache)
        order = index_batches(held_out.indices, batch_size)
        memory_model = MemoryModel(network)
        evaluator = cls(loss, list(optimizer_batches(held_out.examples, order, memory_model, loss)), progress=progress)
        evaluator.base = evaluator._run(network)
        return evaluator

    def subset(self, pairs: int) -> MarginEvaluator:
        """The first `pairs` pairs, rounded up to whole batches, without the adapter's hidden states."""
        batches = self.batches[: -(-pairs // self.batches[0].size)]
        return MarginEvaluator(
            self.loss, batches, self.base[: sum(batch.size for batch in batches)], progress=self.progress
        )

    def measure_base(self) -> MarginMeasurement:
        """The base model measured against itself."""
        return self._summarize(self.base)

    def measure_adapter(self, model: nn.Module, *, use_cache: bool = False) -> MarginMeasurement:
        """Measure the adapter, and keep hidden states of it for the KL of other policies.

        Args:
            model: the model with the adapter.
            use_cache: whether it was loaded from files; see `Network.from_model`.
        """
        network, num_bytes = Network.from_model(model, use_cache=use_cache), 0
        self.adapter_sharing, self.adapter_has_split = network.sharing, network.head_split is not None
        for micro in (micro for batch in self.batches for micro in batch.micro_batches):
            hidden_states = network.hidden_states(micro)
            num_bytes += hidden_states.nbytes
            if num_bytes > MAX_HIDDEN_STATES_BYTES:
                break
            self.adapter_hidden_states.append(hidden_states)
        return self._summarize(self._run(network))

    def measure(self, policy: nn.Module) -> MarginMeasurement:
        """Measure a policy of the same architecture as the adapter; its KL too, if an adapter was measured before."""
        network = Network.from_model(policy)
        # The second: no head for the adapter's hidden states.
        if self.adapter_sharing is None or (self.adapter_has_split and network.head_split is None):
            return self._summarize(self._run(network))
        # Run as the adapter was, whose head or embedding may itself be adapted: hidden states are then logits, and
        # tokens are in another order.
        split = network.head_split if self.adapter_has_split else None
        network = replace(network, head_split=split, sharing=self.adapter_sharing)
        return self._summarize(self._run(network, self.adapter_hidden_states))

    def _run(self, network: Network, hidden_states: Sequence[mx.array] = ()) -> list[ExampleMeasurement]:
        """Measure all pairs, and the KL on the first micro-batches, for which there are hidden states."""
        remaining = iter(hidden_states)

        def options(micro: MicroBatch) -> LogpOptions:
            return {"reference_hidden_states": next(remaining, None)}

        examples, num_pairs = list[ExampleMeasurement](), sum(batch.size for batch in self.batches)
        self.progress.update(0, num_pairs)
        for batch in measure(self.batches, network, options=options):
            examples += batch
            self.progress.update(len(examples), num_pairs)
        return examples

    def _summarize(self, pairs: Sequence[ExampleMeasurement]) -> MarginMeasurement:
        rewards = [
            self.loss.rewards(pair.logps, base.logps, pair.lengths) for pair, base in zip(pairs, self.base, strict=True)
        ]
        margins = np.array([chosen - rejected for chosen, rejected in rewards])
        kls, lengths = np.concatenate([pair.kls for pair in pairs]), np.concatenate([pair.lengths for pair in pairs])
        has_kl = ~np.isnan(kls)
        kl = max(0.0, float(kls[has_kl].sum() / lengths[has_kl].sum())) if has_kl.any() else None
        return MarginMeasurement(margins, float((margins > 0).mean()), kl)
