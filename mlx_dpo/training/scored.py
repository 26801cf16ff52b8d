"""An optimizer batch, cut up for the model, and what its log-probs come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.data.batches import MicroBatch, ahead, micro_batches, mismatched
from mlx_dpo.data.pairs import EncodedPairs
from mlx_dpo.data.records import Completion, Example, Pair
from mlx_dpo.model.budget import Budget
from mlx_dpo.model.completion_logps import CompletionLogps
from mlx_dpo.model.network import Network
from mlx_dpo.model.policy import without_dropout
from mlx_dpo.model.reference import ReferenceLogps
from mlx_dpo.objectives import LabelledLogps, Loss, PairLogps
from mlx_dpo.training.metrics import METRICS, completion_metrics, pair_metrics


@dataclass(frozen=True)
class Batch:
    """The examples of an optimizer batch.

    Attributes:
        indices: of its examples, in their source.
        micros: all of them, cut to go through the model.
        mismatched: prompts with other examples' completions, where the loss asks for the KL on them.
    """

    indices: np.ndarray
    micros: list[MicroBatch]
    mismatched: list[MicroBatch]

    def of(self, micro: MicroBatch) -> np.ndarray:
        """Indices of a micro-batch's examples."""
        return self.indices[list(micro.positions)]


def batches_of(examples: EncodedPairs, order: Iterable[np.ndarray], budget: Budget, loss: Loss) -> Iterator[Batch]:
    """The batches of an order, encoded in a thread ahead of their use."""
    return ahead(_batch(examples, indices, budget, loss) for indices in order)


def _batch(examples: EncodedPairs, indices: np.ndarray, budget: Budget, loss: Loss) -> Batch:
    encoded = [examples[i] for i in indices]
    others: list[MicroBatch] = []
    if loss.kl and len(encoded) > 1:  # one alone has no other's completion
        in_file_order = [encoded[i] for i in np.argsort(indices)]
        others = micro_batches(mismatched(in_file_order, examples.encoder.max_length), budget.fits)
    return Batch(indices, micro_batches(encoded, budget.fits, loss.tail), others)


def asked(loss: Loss, reference: ReferenceLogps, micro: MicroBatch) -> dict[str, Any]:
    """What a loss asks of a network beside log-probs, as `Network.logps` takes it."""
    return {
        "collisions": loss.weighting,
        "others": reference.policy.hidden_rows(micro) if loss.token_kls else None,
    }


@dataclass(frozen=True)
class BatchFacts:
    """What there is to know of a whole optimizer batch before any of it is run with a gradient.

    Attributes:
        mean_trained_tokens: tokens of chosen or desirable completions, per example.
        kl: KL(pi || pi_ref), nats, at least 0, estimated on mismatched completions; None where not asked for.
    """

    mean_trained_tokens: float
    kl: float | None

    @classmethod
    def of(cls, batch: Batch, network: Network, reference: ReferenceLogps) -> BatchFacts:
        """Runs the mismatched completions, if any."""
        tokens = [
            len(completion)
            for micro in batch.micros
            for example, (_, completion) in zip(micro.examples, micro.sequences, strict=False)  # the first side
            if _is_desirable(example)
        ]
        kl = None
        if batch.mismatched:
            with without_dropout(network.model):
                ratios = [network.logps(micro).sums - reference.policy.sums(micro) for micro in batch.mismatched]
            kl = max(0.0, float(np.concatenate(ratios).mean()))
        return cls(sum(tokens) / len(batch.indices), kl)


def _is_desirable(example: Example) -> bool:
    return not (isinstance(example, Completion) and example.desirable is False)


@dataclass(frozen=True)
class Scored:
    """Examples of an optimizer batch with their log-probs, in the order of the micro-batches they came in.

    Attributes:
        examples: what they are.
        logps, reference: [completions], float64 nats, summed over the completion; of pairs chosen, then rejected.
        tokens: [completions], lengths.
        plain: as logps, every token counted alike; None where logps are that.
        kls: [completions], nats, of each position's distributions; None where not asked for.
        weights: [pairs], what each counts; None where all count 1.
        facts: of the whole optimizer batch.
    """

    examples: list[Example]
    logps: np.ndarray
    reference: np.ndarray
    tokens: np.ndarray
    plain: np.ndarray | None
    kls: np.ndarray | None
    weights: np.ndarray | None
    facts: BatchFacts
    loss: Loss

    @classmethod
    def of(
        cls,
        micros: Sequence[MicroBatch],
        logps: Sequence[CompletionLogps],
        references: Sequence[np.ndarray],
        facts: BatchFacts,
        loss: Loss,
    ) -> Scored:
        """The examples of some micro-batches together, with the policy's log-probs and [completions] references."""
        sides = micros[0].sides
        tokens = [np.array([len(completion) for _, completion in micro.sequences], np.float64) for micro in micros]
        weights = None
        if loss.weighting:  # a pair counts by both its answers
            weights = _joined([one.alignments for one in logps], sides).reshape(sides, -1).prod(axis=0)
        return cls(
            [example for micro in micros for example in micro.examples],
            _joined([one.sums for one in logps], sides),
            _joined(references, sides),
            _joined(tokens, sides),
            None if loss.tail == 1 else _joined([one.plain for one in logps], sides),
            _joined([one.kls for one in logps], sides) if loss.token_kls else None,
            weights,
            facts,
            loss,
        )

    @property
    def seen(self) -> PairLogps | LabelledLogps:
        """As objectives see them."""
        kl = self.facts.kl or 0.0
        three = (self.logps, self.reference, self.tokens)
        if self._single:
            return LabelledLogps.of(*three, self._desirable, self.facts.mean_trained_tokens, kl=kl)
        pairs = [example for example in self.examples if isinstance(example, Pair)]
        chosen_kls, rejected_kls = _sides(self.kls)
        chosen_plain, rejected_plain = _sides(self.plain)
        return PairLogps.of(
            *three,
            self.facts.mean_trained_tokens,
            asked_margins=_float32([pair.margin or 0.0 for pair in pairs]),
            score_gaps=_float32([pair.scores[0] - pair.scores[1] if pair.scores else np.nan for pair in pairs]),
            chosen_kls=chosen_kls,
            rejected_kls=rejected_kls,
            chosen_plain=chosen_plain,
            rejected_plain=rejected_plain,
            kl=kl,
        )

    def metrics(self, losses: mx.array) -> np.ndarray:
        """[examples, METRICS] under their losses."""
        rewards = self.loss.rewards(self.logps, self.reference, self.tokens)
        if not self._single:
            table = pair_metrics(losses, self.logps, rewards)
        elif self.loss.imitates:  # there is nothing that a reward would be measured against
            table = completion_metrics(losses, self.logps, np.full_like(rewards, np.nan), self._desirable)
        else:
            table = completion_metrics(losses, self.logps, rewards, self._desirable)
        if self.facts.kl is not None:
            table[:, METRICS.index("kl")] = self.facts.kl
        return table

    @property
    def _single(self) -> bool:
        return isinstance(self.examples[0], Completion)

    @property
    def _desirable(self) -> np.ndarray:
        return np.array([_is_desirable(example) for example in self.examples])


def by_micro_batch(slopes: dict[str, np.ndarray], micros: Sequence[MicroBatch]) -> list[dict[str, np.ndarray]]:
    """The slopes that `Loss.with_slopes` gives for some micro-batches together, for each of them."""
    ends = np.cumsum([len(micro.positions) for micro in micros])[:-1]
    parts = {kind: np.split(each.reshape(micros[0].sides, -1), ends, axis=1) for kind, each in slopes.items()}
    return [{kind: part[i].reshape(-1) for kind, part in parts.items()} for i in range(len(micros))]


def _sides(values: np.ndarray | None) -> tuple[mx.array | None, mx.array | None]:
    """Of the chosen and of the rejected."""
    if values is None:
        return None, None
    chosen, rejected = np.split(values, 2)
    return _float32(chosen), _float32(rejected)


def _joined(parts: Sequence[np.ndarray], sides: int) -> np.ndarray:
    """[completions], one side of all examples after the other, of parts of that order."""
    return np.concatenate([part.reshape(sides, -1) for part in parts], axis=1).reshape(-1)


def _float32(values: Sequence[float] | np.ndarray) -> mx.array:
    return mx.array(np.array(values, np.float32))
