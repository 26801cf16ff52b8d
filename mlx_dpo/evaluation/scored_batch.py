"""An optimizer batch, cut up for the model, and what its log-probs come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.micro_batches import MicroBatch, mismatched_example, prefetch, split_into_micro_batches
from mlx_dpo.data.row_formats import Completion, Example, Pair
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Arrays, Communicator
from mlx_dpo.evaluation.metrics import METRICS, completion_metrics, pair_metrics
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import LabelledLogps, PairLogps, WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps


@dataclass(frozen=True)
class OptimizerBatch:
    """The examples of an optimizer batch that this process runs.

    Attributes:
        size: examples of the whole optimizer batch, those of other processes among them.
        indices: of its own examples, in their source.
        micros: all its own, cut to go through the model.
        mismatched: their prompts with other examples' completions, where the loss asks for the KL on them.
    """

    size: int
    indices: np.ndarray
    micro_batches: list[MicroBatch]
    mismatched_micro_batches: list[MicroBatch]

    def example_indices(self, micro: MicroBatch) -> np.ndarray:
        """Indices of a micro-batch's examples."""
        return self.indices[list(micro.batch_indices)]

    @property
    def indices_in_order(self) -> np.ndarray:
        """Indices of its own examples, as they come in its micro-batches."""
        return np.concatenate([self.indices[:0], *map(self.example_indices, self.micro_batches)])


def optimizer_batches(
    examples: EncodedExamples,
    order: Iterable[np.ndarray],
    budget: MemoryModel,
    loss: WeightedLoss,
    communicator: Communicator = SINGLE_PROCESS,
) -> Iterator[OptimizerBatch]:
    """The batches of an order, encoded in a thread ahead of their use; of each, what is this rank's of the group."""
    return prefetch(_batch(examples, indices, budget, loss, communicator) for indices in order)


def _batch(
    examples: EncodedExamples, indices: np.ndarray, budget: MemoryModel, loss: WeightedLoss, communicator: Communicator
) -> OptimizerBatch:
    own = communicator.local_items(indices)
    encoded = {int(i): examples[i] for i in own}
    others: list[MicroBatch] = []
    if loss.needs_kl and len(indices) > 1:  # one alone has no other's completion
        in_file_order = np.sort(indices).tolist()
        before = zip(in_file_order, [*in_file_order[-1:], *in_file_order[:-1]], strict=True)
        two = [(encoded[i], encoded.get(other) or examples[other]) for i, other in before if i in encoded]
        others = split_into_micro_batches(
            [mismatched_example(*each, examples.encoder.max_length) for each in two], budget.fits
        )
    return OptimizerBatch(
        len(indices), own, split_into_micro_batches(list(encoded.values()), budget.fits, loss.ld_alpha), others
    )


def scoring_options(loss: WeightedLoss, reference: ReferenceLogps, micro: MicroBatch) -> dict[str, Any]:
    """What a loss asks of a network beside log-probs, as `Network.logps` takes it."""
    return {
        "collisions": loss.use_weighting,
        "others": reference.reference_policy.hidden_states(micro) if loss.needs_token_kls else None,
    }


@dataclass(frozen=True)
class BatchStatistics:
    """What there is to know of a whole optimizer batch before any of it is run with a gradient.

    Attributes:
        mean_trained_tokens: tokens of chosen or desirable completions, per example.
        kl: KL(pi || pi_ref), nats, at least 0, estimated on mismatched completions; None where not asked for.
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
        """Runs the mismatched completions, if any."""
        tokens = [
            len(completion)
            for micro in batch.micro_batches
            for example, (_, completion) in zip(micro.examples, micro.sequences, strict=False)  # the first side
            if _is_desirable(example)
        ]
        with without_dropout(network.model):
            ratios = [
                network.logps(micro).sums - reference.reference_policy.sums(micro)
                for micro in batch.mismatched_micro_batches
            ]
        parts = {"tokens": np.array([sum(tokens)]), "ratios": np.concatenate([np.zeros(0), *ratios])}
        told = communicator.gather_shards(parts)
        every = np.concatenate([part["ratios"] for part in told])
        kl = max(0.0, float(every.mean())) if len(every) else None
        return cls(sum(int(part["tokens"][0]) for part in told) / batch.size, kl)


def _is_desirable(example: Example) -> bool:
    return not (isinstance(example, Completion) and example.desirable is False)


@dataclass(frozen=True)
class ScoredBatch:
    """Examples of an optimizer batch with their log-probs, in the order of the micro-batches they came in.

    Attributes:
        columns: arrays of [examples] or [examples, sides], of pairs chosen and rejected, by what they are:
            `logps`, `reference`: float64 nats, summed over the completion.
            `tokens`: its length.
            `plain`: as logps, every token counted alike, where logps are not that.
            `kls`: nats, of each position's distributions, where asked for.
            `weights`: what each pair counts, where not all count 1.
            `margins`, `score_gaps`: of pairs, what the rows ask for, or 0; how their answers' scores differ, or NaN.
            `desirable`: of single completions, whether they are.
        facts: of the whole optimizer batch.
    """

    columns: Arrays
    statistics: BatchStatistics
    loss: WeightedLoss

    @classmethod
    def from_micro_batches(
        cls,
        micros: Sequence[MicroBatch],
        logps: Sequence[CompletionLogps],
        references: Sequence[np.ndarray],
        statistics: BatchStatistics,
        loss: WeightedLoss,
        completions_per_example: int,
    ) -> ScoredBatch:
        """The examples of some micro-batches together, with the policy's log-probs and [completions] references."""
        examples = [example for micro in micros for example in micro.examples]
        tokens = [np.array([len(completion) for _, completion in micro.sequences], np.float64) for micro in micros]
        columns = {
            "logps": _joined([one.sums for one in logps], completions_per_example),
            "reference": _joined(references, completions_per_example),
            "tokens": _joined(tokens, completions_per_example),
            **_row_columns(examples, single=completions_per_example == 1),
        }
        if loss.ld_alpha != 1:
            columns["plain"] = _joined([one.unweighted_sums for one in logps], completions_per_example)
        if loss.needs_token_kls:
            columns["kls"] = _joined([one.kls for one in logps], completions_per_example)
        if loss.use_weighting:  # a pair counts by both its answers
            columns["weights"] = _joined([one.alignments for one in logps], completions_per_example).prod(axis=1)
        return cls(columns, statistics, loss)

    def gather(self, communicator: Communicator) -> tuple[ScoredBatch, slice]:
        """With the examples of all ranks, and where this rank's stand among them."""
        columns, own = communicator.gather_and_concatenate(self.columns)
        return replace(self, columns=columns), own

    @property
    def weights(self) -> np.ndarray | None:
        """[pairs], what each counts; None where all count 1."""
        return self.columns.get("weights")

    @property
    def loss_inputs(self) -> PairLogps | LabelledLogps:
        """As objectives see them."""
        kl = self.statistics.kl or 0.0
        logps, reference, tokens = self._sums
        if "desirable" in self.columns:
            wanted = self.columns["desirable"]
            return LabelledLogps.from_numpy(logps, reference, tokens, wanted, self.statistics.mean_chosen_tokens, kl=kl)
        chosen_kls, rejected_kls = _chosen_and_rejected(self.columns.get("kls"))
        chosen_unweighted, rejected_unweighted = _chosen_and_rejected(self.columns.get("plain"))
        return PairLogps.from_numpy(
            logps,
            reference,
            tokens,
            self.statistics.mean_chosen_tokens,
            target_margins=_float32(self.columns["margins"]),
            score_gaps=_float32(self.columns["score_gaps"]),
            chosen_kls=chosen_kls,
            rejected_kls=rejected_kls,
            chosen_unweighted=chosen_unweighted,
            rejected_unweighted=rejected_unweighted,
            kl=kl,
        )

    @property
    def _sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-probs of policy and reference, and lengths, [completions] each: one side of all, then the other's."""
        columns = self.columns
        return _flat(columns["logps"]), _flat(columns["reference"]), _flat(columns["tokens"])

    def metrics(self, losses: mx.array) -> np.ndarray:
        """[examples, METRICS] under their losses."""
        logps, reference, tokens = self._sums
        rewards = self.loss.rewards(logps, reference, tokens)
        if "desirable" not in self.columns:
            table = pair_metrics(losses, logps, rewards)
        elif self.loss.likelihood_only:  # there is nothing that a reward would be measured against
            table = completion_metrics(losses, logps, np.full_like(rewards, np.nan), self.columns["desirable"])
        else:
            table = completion_metrics(losses, logps, rewards, self.columns["desirable"])
        if self.statistics.kl is not None:
            table[:, METRICS.index("kl")] = self.statistics.kl
        return table


def _row_columns(examples: Sequence[Example], single: bool) -> Arrays:
    """What rows say of themselves, as columns of `Scored`."""
    if single:
        return {"desirable": np.array([_is_desirable(example) for example in examples], np.bool_)}
    pairs = [example for example in examples if isinstance(example, Pair)]
    gaps = [pair.scores[0] - pair.scores[1] if pair.scores else np.nan for pair in pairs]
    return {"margins": np.array([pair.margin or 0.0 for pair in pairs]), "score_gaps": np.array(gaps, np.float64)}


def split_by_micro_batch(
    gradients: dict[str, np.ndarray], micros: Sequence[MicroBatch], own: slice
) -> list[dict[str, np.ndarray]]:
    """The slopes that `Loss.with_slopes` gives for the examples `own` among others, for each of their micro-batches."""
    if not micros:
        return []
    ends = np.cumsum([len(micro.batch_indices) for micro in micros])[:-1]
    mine = {kind: each.reshape(micros[0].completions_per_example, -1)[:, own] for kind, each in gradients.items()}
    parts = {kind: np.split(each, ends, axis=1) for kind, each in mine.items()}
    return [{kind: part[i].reshape(-1) for kind, part in parts.items()} for i in range(len(micros))]


def _chosen_and_rejected(values: np.ndarray | None) -> tuple[mx.array | None, mx.array | None]:
    """Of the chosen and of the rejected."""
    return (None, None) if values is None else (_float32(values[:, 0]), _float32(values[:, 1]))


def _joined(parts: Sequence[np.ndarray], sides: int) -> np.ndarray:
    """[examples, sides] of micro-batches' [completions], one side of all their examples after the other."""
    return np.concatenate([np.zeros((0, sides)), *(part.reshape(sides, -1).T for part in parts)])


def _flat(values: np.ndarray) -> np.ndarray:
    """[completions], one side of all examples after the other."""
    return values.T.reshape(-1)


def _float32(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.float32))
