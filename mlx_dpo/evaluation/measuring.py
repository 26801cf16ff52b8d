"""The one path by which train, evaluate, score and fuse run a policy and its reference over examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.encoded_examples import EncodedExamples
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.distributed.communicator import SINGLE_PROCESS, Arrays, Communicator
from mlx_dpo.evaluation.metrics import mean_metrics, metric_names
from mlx_dpo.evaluation.optimizer_batch import OptimizerBatch, optimizer_batches
from mlx_dpo.evaluation.row_batches import by_example, index_batches
from mlx_dpo.evaluation.scored_batch import (
    BatchStatistics,
    ScoredBatch,
    completion_outputs,
    example_columns,
    scoring_options,
)
from mlx_dpo.forward.completion_logps import CompletionLogps, LogpOptions
from mlx_dpo.forward.memory_model import MemoryModel
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.policy import without_dropout
from mlx_dpo.objectives import LossStates, WeightedLoss
from mlx_dpo.reference.reference_policy import ReferenceLogps

# (example indices, micro-batch, [sequences] log-probs of the policy) -> [sequences] log-probs of the reference, nats
ReferenceSums = Callable[[np.ndarray, MicroBatch, np.ndarray], np.ndarray]
# (batch, log-probs and [sequences] reference sums of each micro-batch) -> [examples, metrics]
BatchMetrics = Callable[[OptimizerBatch, list[CompletionLogps], list[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class ExampleMeasurement:
    """What was measured of one example. Of a pair, the chosen completion comes first.

    Attributes:
        index: of the example in its source.
        lengths: [completions], in trained tokens.
        token_logps: for each completion, [tokens] log p of its tokens, float32, nats; [1], its reward, if the network
            has a reward head.
        logps: [completions] log pi, float64, nats, summed over tokens as the loss weights them; or rewards.
        reference_logps: [completions] log pi_ref, likewise; 0 if no reference was asked for.
        kls: [completions] KL(given policy || measured policy), nats, summed over tokens; NaN if not asked for.
        metrics: [`metric_names`] under a loss; empty if not asked for.
    """

    index: int
    lengths: np.ndarray
    token_logps: list[np.ndarray]
    logps: np.ndarray
    reference_logps: np.ndarray
    kls: np.ndarray
    metrics: np.ndarray


def measure(
    batches: Iterable[OptimizerBatch],
    network: Network,
    *,
    reference: ReferenceSums | None = None,
    options: Callable[[MicroBatch], LogpOptions] = lambda micro: {},
    metrics: BatchMetrics | None = None,
) -> Iterator[list[ExampleMeasurement]]:
    """Run a policy over batches of examples, without dropout and without changing it.

    Args:
        batches: examples with any number of completions, split into micro-batches.
        network: the policy.
        reference: gives the reference's log-probs.
        options: what to compute beside log-probs, as keyword arguments of `Network.logps`.
        metrics: computes the metrics of a batch.

    Yields:
        The measurements of each batch, in the order of its micro-batches.
    """
    for batch in batches:
        micro_batches = batch.micro_batches
        with without_dropout(network.model):
            logps = [network.logps(micro, **options(micro)) for micro in micro_batches]
            references = [
                np.zeros(len(micro.sequences))
                if reference is None
                else reference(batch.example_indices(micro), micro, completions.sums)
                for micro, completions in zip(micro_batches, logps, strict=True)
            ]
            table = metrics(batch, logps, references) if metrics and micro_batches else None
        lengths = by_example(batch, [micro.trained_lengths for micro in micro_batches])
        tokens = by_example(batch, [_token_logps(completions) for completions in logps])
        sums = by_example(batch, [completions.sums for completions in logps])
        reference_sums = by_example(batch, references)
        kls = by_example(batch, [_kls(completions) for completions in logps])
        rows = np.empty((len(tokens), 0)) if table is None else table
        yield [
            ExampleMeasurement(i, lengths[i], list(tokens[i]), sums[i], reference_sums[i], kls[i], row)
            for i, row in zip(tokens, rows, strict=True)
        ]


@dataclass(frozen=True)
class LossMetrics:
    """Computes the metrics of a batch under a loss; a `BatchMetrics`.

    Attributes:
        states: what the loss keeps of the batches it was trained on.
    """

    network: Network
    reference: ReferenceLogps
    loss: WeightedLoss
    states: LossStates | None = None

    def __call__(self, batch: OptimizerBatch, logps: list[CompletionLogps], references: list[np.ndarray]) -> np.ndarray:
        """[examples, metrics]; see `BatchMetrics`."""
        statistics = BatchStatistics.compute(batch, self.network, self.reference)
        outputs = [completion_outputs(*arrays, self.loss) for arrays in zip(logps, references, strict=True)]
        scored = ScoredBatch(example_columns(batch.micro_batches, outputs), statistics, self.loss)
        return scored.metrics(self.loss(scored.loss_inputs, self.states, scored.weights))


def evaluate_examples(
    memory_model: MemoryModel,
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
    """Measure pairs or single completions under a loss.

    Args:
        memory_model: of the policy; sizes the micro-batches.
        examples: from which some are measured.
        indices: of the examples to measure.
        reference: the reference's log-probs; those still missing are computed and kept.
        loss: gives the rewards and the loss.
        batch_size: examples that are measured together.
        loss_state: what the loss keeps of the batches it was trained on.
        on_progress: is called with the number of examples measured so far.
        on_measurement: is called with the measurement of each example.
        communicator: its ranks take batches in turn; all ranks get all results.

    Returns:
        The mean of every metric.
    """
    rows, network, names = list[np.ndarray](), memory_model.network, metric_names(loss)
    order = communicator.round_robin(list(index_batches(indices, batch_size)))
    for own in measure(
        optimizer_batches(examples, order, memory_model, loss),
        network,
        reference=reference.lookup,
        options=lambda micro: scoring_options(loss, reference, micro),
        metrics=LossMetrics(network, reference, loss, loss_state),
    ):
        for measurement in _gather(own, reference, communicator, len(names)):
            rows.append(measurement.metrics[None])
            if on_measurement is not None:
                on_measurement(measurement)
        if on_progress is not None:
            on_progress(len(rows))
    return mean_metrics(rows, names)


def _gather(
    own: Sequence[ExampleMeasurement], reference: ReferenceLogps, communicator: Communicator, num_metrics: int
) -> list[ExampleMeasurement]:
    """The measurements of all ranks; the reference log-probs among them are kept in `reference`."""
    if communicator.size == 1:
        return list(own)
    measurements = []
    for shard in communicator.gather_shards(_to_arrays(own, reference.completions_per_example, num_metrics)):
        reference.fill(shard["index"], shard["reference"])
        tokens = iter(np.split(shard["tokens"], np.cumsum(shard["num_tokens"])[:-1]))
        columns = (shard[name] for name in ("index", "lengths", "logps", "reference", "metrics"))
        for index, lengths, logps, reference_logps, metrics in zip(*columns, strict=True):
            token_logps, kls = [next(tokens) for _ in logps], np.full(len(logps), np.nan)
            measurements.append(
                ExampleMeasurement(int(index), lengths, token_logps, logps, reference_logps, kls, metrics)
            )
    return measurements


def _to_arrays(measurements: Sequence[ExampleMeasurement], completions: int, num_metrics: int) -> Arrays:
    """Measurements as arrays; `tokens` holds the `num_tokens` numbers of all completions one after the other."""
    token_logps = [tokens for measurement in measurements for tokens in measurement.token_logps]
    return {
        "index": np.array([measurement.index for measurement in measurements], np.int64),
        "logps": np.array([measurement.logps for measurement in measurements]).reshape(-1, completions),
        "reference": np.array([measurement.reference_logps for measurement in measurements]).reshape(-1, completions),
        "metrics": np.array([measurement.metrics for measurement in measurements]).reshape(-1, num_metrics),
        "lengths": np.array([measurement.lengths for measurement in measurements], np.int64).reshape(-1, completions),
        "num_tokens": np.array([len(tokens) for tokens in token_logps], np.int64),
        "tokens": np.concatenate([np.zeros(0, np.float32), *token_logps]),
    }


def _token_logps(logps: CompletionLogps) -> np.ndarray:
    """[sequences] of [tokens] arrays."""
    sequences = np.empty(logps.num_sequences, object)
    for i in range(logps.num_sequences):
        sequences[i] = logps.token_logps[logps.sequence_indices == i]
    return sequences


def _kls(logps: CompletionLogps) -> np.ndarray:
    """[sequences], NaN if no KL was computed."""
    return np.full(logps.num_sequences, np.nan) if logps.token_kls is None else logps.kls
