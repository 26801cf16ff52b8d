"""Optimizer batches: cut into micro-batches, and scored by log-probabilities of policy and reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.data.chat_encoding import EncodedExample
from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.micro_batches import MicroBatch, mismatched_example, split_into_micro_batches
from mlx_dpo.data.prefetching import prefetch
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Arrays, Communicator
from mlx_dpo.errors import Where
from mlx_dpo.evaluation.metrics import METRICS, completion_metrics, pair_metrics
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import LabelledLogps, PairLogps, WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps


@dataclass(frozen=True)
class IndexedExample:
    """An example to train on or to measure, encoded when it is first needed.

    Attributes:
        index: its row in the reference table, from 0.
        location: where it comes from, for messages.
        encode: gives its token ids. Raises `RowError`.
    """

    index: int
    location: Where
    encode: Callable[[], EncodedExample]

    @cached_property
    def encoded(self) -> EncodedExample:
        """Its token ids."""
        return self.encode()


def indexed_examples(examples: EncodedExamples, indices: np.ndarray) -> list[IndexedExample]:
    """Return some examples of a source by their indices, [examples]."""
    return [IndexedExample(i, examples.source.location(i), partial(examples.__getitem__, i)) for i in indices.tolist()]


@dataclass(frozen=True)
class OptimizerBatch:
    """The examples of an optimizer batch that this process runs.

    Attributes:
        size: number of examples in the whole optimizer batch, those of other processes included.
        examples: this process's examples.
        micro_batches: these examples, cut to go through the model.
        mismatched_micro_batches: their prompts with other examples' completions, where the loss needs their KL.
    """

    size: int
    examples: Sequence[IndexedExample]
    micro_batches: list[MicroBatch]
    mismatched_micro_batches: list[MicroBatch] = field(default_factory=list)

    def example_indices(self, micro: MicroBatch) -> np.ndarray:
        """Return the indices of a micro-batch's examples."""
        return np.array([self.examples[i].index for i in micro.batch_indices], np.int64)

    @property
    def indices_in_order(self) -> np.ndarray:
        """Indices of its examples in the order of the micro-batches."""
        return np.concatenate([np.zeros(0, np.int64), *map(self.example_indices, self.micro_batches)])


def optimizer_batches(
    examples: EncodedExamples,
    order: Iterable[np.ndarray],
    budget: MemoryModel,
    loss: WeightedLoss,
    communicator: Communicator = SINGLE_PROCESS,
) -> Iterator[OptimizerBatch]:
    """Yield batches of a source, encoded in a thread ahead of their use.

    Args:
        examples: the source.
        order: indices of each batch's examples.
        budget: how large a micro-batch may be.
        loss: the loss that they are for.
        communicator: ranks that share each batch.
    """
    limit = examples.encoder.max_length
    return prefetch(
        make_optimizer_batch(indexed_examples(examples, indices), budget, loss, limit, communicator)
        for indices in order
    )


def make_optimizer_batch(
    examples: Sequence[IndexedExample],
    budget: MemoryModel,
    loss: WeightedLoss,
    max_length: int,
    communicator: Communicator = SINGLE_PROCESS,
) -> OptimizerBatch:
    """Cut this rank's share of an optimizer batch into micro-batches.

    Args:
        examples: all examples of the batch, on every rank.
        budget: how large a micro-batch may be.
        loss: the loss that they are for.
        max_length: longest prompt + completion, in tokens.
        communicator: ranks that share the batch.
    """
    local = communicator.local_items(examples)
    encoded = [example.encoded for example in local]
    mismatched: list[MicroBatch] = []
    if loss.needs_kl and len(examples) > 1:  # a single example has no other's completion
        in_order = sorted(examples, key=lambda example: example.index)
        local_indices = {example.index for example in local}
        pairs = [
            mismatched_example(example.encoded, previous.encoded, max_length)
            for example, previous in zip(in_order, [in_order[-1], *in_order[:-1]], strict=True)
            if example.index in local_indices
        ]
        mismatched = split_into_micro_batches(pairs, budget.fits)
    micro_batches = split_into_micro_batches(encoded, budget.fits, loss.ld_alpha)
    return OptimizerBatch(len(examples), local, micro_batches, mismatched)


def scoring_options(loss: WeightedLoss, reference: ReferenceLogps, micro: MicroBatch) -> dict[str, Any]:
    """Return what a loss needs of a network beside log-probs, as arguments of `Network.logps`."""
    return {
        "collision_logps": loss.use_weighting,
        "reference_hidden_states": reference.reference_policy.hidden_states(micro) if loss.needs_token_kls else None,
    }


@dataclass(frozen=True)
class BatchStatistics:
    """Statistics of a whole optimizer batch that a loss needs before any of it is run with a gradient.

    Attributes:
        mean_chosen_tokens: tokens of chosen or desirable completions, per example.
        kl: KL(policy || reference) in nats, at least 0, estimated on mismatched completions; None where not needed.
    """

    mean_chosen_tokens: float
    kl: float | None

    @classmethod
    def compute(
        cls,
        batch: OptimizerBatch,
        network: Network,
        reference: ReferenceLogps,
        communicator: Communicator = SINGLE_PROCESS,
    ) -> BatchStatistics:
        """Compute them; runs the mismatched completions, if any.

        Args:
            batch: this rank's share of the batch.
            network: the policy's network.
            reference: the reference.
            communicator: ranks that share the batch.
        """
        num_tokens = sum(
            len(completion)
            for micro in batch.micro_batches
            for example, (_, completion) in zip(micro.examples, micro.sequences, strict=False)  # not the rejected ones
            if _is_desirable(example)
        )
        with without_dropout(network.model):
            log_ratios = [
                network.logps(micro).sums - reference.reference_policy.sums(micro)
                for micro in batch.mismatched_micro_batches
            ]
        shards = communicator.gather_shards(
            {"tokens": np.array([num_tokens]), "log_ratios": np.concatenate([np.zeros(0), *log_ratios])}
        )
        all_log_ratios = np.concatenate([shard["log_ratios"] for shard in shards])
        kl = max(0.0, float(all_log_ratios.mean())) if len(all_log_ratios) else None
        return cls(sum(int(shard["tokens"][0]) for shard in shards) / batch.size, kl)


def _is_desirable(example: Example) -> bool:
    return not (isinstance(example, Completion) and example.desirable is False)


def completion_outputs(logps: CompletionLogps, reference: np.ndarray, loss: WeightedLoss) -> Arrays:
    """Return what a loss needs of a micro-batch, each [completions], by the names of `ScoredBatch.columns`.

    Args:
        logps: of the policy.
        reference: [completions] log-probs of the reference, nats.
        loss: the loss.
    """
    outputs = {"logps": logps.sums, "reference": reference}
    if loss.ld_alpha != 1:
        outputs["plain"] = logps.unweighted_sums
    if loss.needs_token_kls:
        outputs["kls"] = logps.kls
    if loss.use_weighting:
        outputs["alignments"] = logps.alignments
    return outputs


def example_columns(micros: Sequence[MicroBatch], outputs: Sequence[Arrays]) -> Arrays:
    """Return the columns of a `ScoredBatch`; none without micro-batches.

    Args:
        micros: the micro-batches.
        outputs: the outputs of each, [completions, ...].
    """
    if not micros:
        return {}
    lengths = [np.array([len(completion) for _, completion in micro.sequences], np.float64) for micro in micros]
    columns = {name: _by_example(micros, [arrays[name] for arrays in outputs]) for name in outputs[0]}
    columns["tokens"] = _by_example(micros, lengths)
    examples = [example for micro in micros for example in micro.examples]
    if micros[0].completions_per_example == 1:
        return columns | {"desirable": np.array([_is_desirable(example) for example in examples], np.bool_)}
    pairs = [example for example in examples if isinstance(example, Pair)]
    gaps = [pair.scores[0] - pair.scores[1] if pair.scores else np.nan for pair in pairs]
    return columns | {
        "margins": np.array([pair.margin or 0.0 for pair in pairs]),
        "score_gaps": np.array(gaps, np.float64),
    }


@dataclass(frozen=True)
class ScoredBatch:
    """Examples of an optimizer batch with their log-probs, in the order of the micro-batches they came in.

    Attributes:
        columns: arrays of [examples] or [examples, completions], of pairs chosen and rejected, by name:
            `logps`, `reference`: float64 nats, summed over the completion's tokens.
            `tokens`: the completion's length.
            `plain`: log-probs that weigh all tokens alike, where `logps` does not.
            `kls`: nats, KL(policy || reference) summed over positions, where the loss needs it.
            `alignments`: WPO's weights, where pairs are weighted.
            `margins`, `score_gaps`: of pairs, the margin that the row asks for, or 0; the difference of the
                completions' scores, or NaN.
            `desirable`: of single completions, their label.
        statistics: of the whole optimizer batch.
        loss: the loss.
    """

    columns: Arrays
    statistics: BatchStatistics
    loss: WeightedLoss

    @property
    def weights(self) -> np.ndarray | None:
        """[pairs] weights of the pairs, the product over their completions; None where all are 1."""
        return self.columns["alignments"].prod(axis=1) if "alignments" in self.columns else None

    @property
    def loss_inputs(self) -> PairLogps | LabelledLogps:
        """The batch as loss functions take it."""
        kl, columns, mean_tokens = self.statistics.kl or 0.0, self.columns, self.statistics.mean_chosen_tokens
        logps, reference, tokens = self._completions
        if "desirable" in columns:
            return LabelledLogps.from_numpy(logps, reference, tokens, columns["desirable"], mean_tokens, kl=kl)
        chosen_kls, rejected_kls = _chosen_and_rejected(columns.get("kls"))
        chosen_unweighted, rejected_unweighted = _chosen_and_rejected(columns.get("plain"))
        return PairLogps.from_numpy(
            logps,
            reference,
            tokens,
            mean_tokens,
            target_margins=_float32(columns["margins"]),
            score_gaps=_float32(columns["score_gaps"]),
            chosen_kls=chosen_kls,
            rejected_kls=rejected_kls,
            chosen_unweighted=chosen_unweighted,
            rejected_unweighted=rejected_unweighted,
            kl=kl,
        )

    @property
    def _completions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[completions] log-probs of policy and reference, and lengths; all chosen before all rejected."""
        columns = [self.columns[name] for name in ("logps", "reference", "tokens")]
        logps, reference, tokens = (values.T.reshape(-1) for values in columns)
        return logps, reference, tokens

    def metrics(self, losses: mx.array) -> np.ndarray:
        """Compute the metrics of each example.

        Args:
            losses: [examples].

        Returns:
            [examples, METRICS], NaN where an example has no such number.
        """
        logps, reference, tokens = self._completions
        rewards = self.loss.rewards(logps, reference, tokens)
        if "desirable" not in self.columns:
            table = pair_metrics(losses, logps, rewards)
        else:
            if self.loss.likelihood_only:  # its rewards of single completions mean nothing
                rewards = np.full_like(rewards, np.nan)
            table = completion_metrics(losses, logps, rewards, self.columns["desirable"])
        if self.statistics.kl is not None:
            table[:, METRICS.index("kl")] = self.statistics.kl
        return table


def split_by_micro_batch(gradients: Arrays, micros: Sequence[MicroBatch], local: slice) -> list[Arrays]:
    """Split gradients into those of each micro-batch.

    Args:
        gradients: [completions, ...] by output, of all examples of a batch; all chosen before all rejected.
        micros: this rank's micro-batches.
        local: their examples' place among all.

    Returns:
        For each micro-batch [completions, ...] by output.
    """
    if not micros:
        return []
    ends = np.cumsum([len(micro.batch_indices) for micro in micros])[:-1]
    per_example, parts = micros[0].completions_per_example, {}
    for name, values in gradients.items():
        by_example = values.reshape(per_example, -1, *values.shape[1:])[:, local]
        parts[name] = [part.reshape(-1, *values.shape[1:]) for part in np.split(by_example, ends, axis=1)]
    return [{name: arrays[i] for name, arrays in parts.items()} for i in range(len(micros))]


def _by_example(micros: Sequence[MicroBatch], values: Sequence[np.ndarray]) -> np.ndarray:
    """[examples, completions, ...] of micro-batches' [completions, ...], all chosen before all rejected in each."""
    count = micros[0].completions_per_example
    joined = np.concatenate([array.reshape(count, -1, *array.shape[1:]).swapaxes(0, 1) for array in values])
    return joined.astype(np.float64)


def _chosen_and_rejected(values: np.ndarray | None) -> tuple[mx.array | None, mx.array | None]:
    return (None, None) if values is None else (_float32(values[:, 0]), _float32(values[:, 1]))


def _float32(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.float32))
