"""Measuring a policy on examples, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.encoded_examples import EncodedPairs
from mlx_dpo.distributed.communicator import ALONE, Arrays, Group
from mlx_dpo.evaluation.metrics import METRICS, mean_metrics
from mlx_dpo.evaluation.scored_batch import Batch, BatchFacts, Scored, asked, batches_of
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.memory_model import Budget
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import AllRunning, Loss
from mlx_dpo.reference.reference_policy import ReferenceLogps


@dataclass(frozen=True)
class Measured:
    """One example as it was measured.

    Attributes:
        index: its place in its source.
        metrics: [METRICS].
        tokens: of each completion, log p of its tokens, float32, nats; of pairs the chosen one's, then the rejected's.
        reference: [completions], log pi_ref, float64, nats, summed over tokens.
    """

    index: int
    metrics: np.ndarray
    tokens: list[np.ndarray]
    reference: np.ndarray

    @classmethod
    def of(
        cls, batch: Batch, logps: list[CompletionLogps], references: list[np.ndarray], metrics: np.ndarray
    ) -> Iterator[Measured]:
        """The examples of a batch, whose micro-batches have such log-probs; metrics: [examples, METRICS]."""
        rows = iter(metrics)
        for micro, one, reference in zip(batch.micros, logps, references, strict=True):
            tokens = [one.tokens[one.sequences == i] for i in range(one.count)]
            step = len(micro.positions)
            for i, index in enumerate(batch.of(micro)):
                yield cls(int(index), next(rows), tokens[i::step], reference[i::step])

    @classmethod
    def of_all(cls, own: list[Measured], reference: ReferenceLogps, group: Group) -> Iterator[Measured]:
        """This rank's, and those of the others, whose reference log-probs are known from then on."""
        for part in group.parts(_arrays(own, reference.sides)):
            reference.learn(part["index"], part["reference"])
            tokens = iter(np.split(part["tokens"], np.cumsum(part["lengths"])[:-1]))
            for index, metrics, summed in zip(part["index"], part["metrics"], part["reference"], strict=True):
                yield cls(int(index), metrics, [next(tokens) for _ in summed], summed)


def _arrays(measured: Sequence[Measured], sides: int) -> Arrays:
    """For all ranks; `lengths` are those of all completions in `tokens`, one after the other."""
    tokens = [side for one in measured for side in one.tokens]
    return {
        "index": np.array([one.index for one in measured], np.int64),
        "metrics": np.array([one.metrics for one in measured]).reshape(-1, len(METRICS)),
        "reference": np.array([one.reference for one in measured]).reshape(-1, sides),
        "lengths": np.array([len(side) for side in tokens], np.int64),
        "tokens": np.concatenate([np.zeros(0, np.float32), *tokens]),
    }


def windows(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`indices` in consecutive pieces of `size`."""
    return (indices[i : i + size] for i in range(0, len(indices), size))


def evaluate_examples(
    budget: Budget,
    examples: EncodedPairs,
    indices: np.ndarray,
    reference: ReferenceLogps,
    loss: Loss,
    *,
    batch_size: int,
    running: AllRunning | None = None,
    progress: Callable[[int], None] | None = None,
    each: Callable[[Measured], None] | None = None,
    group: Group = ALONE,
) -> dict[str, float]:
    """The mean of every metric over the examples `indices`.

    Args:
        running: what the loss keeps of the batches it was trained on.
        progress: hears how many are done.
        each: hears of each example.
        group: its ranks take batches in turn; all get the means, and each hears of all examples.
    """
    rows, network = list[np.ndarray](), budget.network
    with without_dropout(network.model):
        for batch in batches_of(examples, group.turns(list(windows(indices, batch_size))), budget, loss):
            own = _measured(batch, network, reference, loss, running)
            for one in Measured.of_all(own, reference, group):
                rows.append(one.metrics[None])
                if each is not None:
                    each(one)
            if progress is not None:
                progress(len(rows))
    return mean_metrics(rows)


def _measured(
    batch: Batch, network: Network, reference: ReferenceLogps, loss: Loss, running: AllRunning | None
) -> list[Measured]:
    if not batch.micros:
        return []
    references = [reference.of(batch.of(micro), micro) for micro in batch.micros]
    logps = [network.logps(micro, **asked(loss, reference, micro)) for micro in batch.micros]
    facts = BatchFacts.of(batch, network, reference)
    scored = Scored.of(batch.micros, logps, references, facts, loss, reference.sides)
    rows = scored.metrics(loss(scored.seen, running, scored.weights))
    return list(Measured.of(batch, logps, references, rows))
