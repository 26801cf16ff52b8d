"""Measuring a policy on examples, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Arrays, Communicator
from mlx_dpo.evaluation.metrics import METRICS, mean_metrics
from mlx_dpo.evaluation.scored_batch import (
    BatchStatistics,
    OptimizerBatch,
    ScoredBatch,
    completion_outputs,
    example_columns,
    optimizer_batches,
    scoring_options,
)
from mlx_dpo.forward.completion_logps import CompletionLogps
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import LossStates, WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps


@dataclass(frozen=True)
class ExampleMeasurement:
    """One example as it was measured.

    Attributes:
        index: its place in its source.
        metrics: [METRICS].
        tokens: of each completion, log p of its tokens, float32, nats; of pairs the chosen one's, then the rejected's.
        reference: [completions], log pi_ref, float64, nats, summed over tokens.
    """

    index: int
    metrics: np.ndarray
    token_logps: list[np.ndarray]
    reference_logps: np.ndarray

    @classmethod
    def of(
        cls, batch: OptimizerBatch, logps: list[CompletionLogps], references: list[np.ndarray], metrics: np.ndarray
    ) -> Iterator[ExampleMeasurement]:
        """The examples of a batch, whose micro-batches have such log-probs; metrics: [examples, METRICS]."""
        rows = iter(metrics)
        for micro, one, reference in zip(batch.micro_batches, logps, references, strict=True):
            tokens = [one.token_logps[one.sequence_indices == i] for i in range(one.num_sequences)]
            step = len(micro.batch_indices)
            for i, index in enumerate(batch.example_indices(micro)):
                yield cls(int(index), next(rows), tokens[i::step], reference[i::step])

    @classmethod
    def of_all(
        cls, own: list[ExampleMeasurement], reference: ReferenceLogps, communicator: Communicator
    ) -> Iterator[ExampleMeasurement]:
        """This rank's, and those of the others, whose reference log-probs are known from then on."""
        for part in communicator.gather_shards(_arrays(own, reference.completions_per_example)):
            reference.fill(part["index"], part["reference"])
            tokens = iter(np.split(part["tokens"], np.cumsum(part["lengths"])[:-1]))
            for index, metrics, summed in zip(part["index"], part["metrics"], part["reference"], strict=True):
                yield cls(int(index), metrics, [next(tokens) for _ in summed], summed)


def _arrays(measured: Sequence[ExampleMeasurement], sides: int) -> Arrays:
    """For all ranks; `lengths` are those of all completions in `tokens`, one after the other."""
    tokens = [side for one in measured for side in one.token_logps]
    return {
        "index": np.array([one.index for one in measured], np.int64),
        "metrics": np.array([one.metrics for one in measured]).reshape(-1, len(METRICS)),
        "reference": np.array([one.reference_logps for one in measured]).reshape(-1, sides),
        "lengths": np.array([len(side) for side in tokens], np.int64),
        "tokens": np.concatenate([np.zeros(0, np.float32), *tokens]),
    }


def index_batches(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """`indices` in consecutive pieces of `size`."""
    return (indices[i : i + size] for i in range(0, len(indices), size))


def evaluate_examples(
    budget: MemoryModel,
    examples: EncodedExamples,
    indices: np.ndarray,
    reference: ReferenceLogps,
    loss: WeightedLoss,
    *,
    batch_size: int,
    loss_state: LossStates | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_measurement: Callable[[ExampleMeasurement], None] | None = None,
    communicator: Communicator = SINGLE_PROCESS,
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
        for batch in optimizer_batches(
            examples, communicator.round_robin(list(index_batches(indices, batch_size))), budget, loss
        ):
            own = _measured(batch, network, reference, loss, loss_state)
            for one in ExampleMeasurement.of_all(own, reference, communicator):
                rows.append(one.metrics[None])
                if on_measurement is not None:
                    on_measurement(one)
            if on_progress is not None:
                on_progress(len(rows))
    return mean_metrics(rows)


def _measured(
    batch: OptimizerBatch, network: Network, reference: ReferenceLogps, loss: WeightedLoss, running: LossStates | None
) -> list[ExampleMeasurement]:
    if not batch.micro_batches:
        return []
    references = [reference.lookup(batch.example_indices(micro), micro) for micro in batch.micro_batches]
    logps = [network.logps(micro, **scoring_options(loss, reference, micro)) for micro in batch.micro_batches]
    facts = BatchStatistics.compute(batch, network, reference)
    outputs = [completion_outputs(*arrays, loss) for arrays in zip(logps, references, strict=True)]
    scored = ScoredBatch(example_columns(batch.micro_batches, outputs), facts, loss)
    rows = scored.metrics(loss(scored.loss_inputs, running, scored.weights))
    return list(ExampleMeasurement.of(batch, logps, references, rows))
