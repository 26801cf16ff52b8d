"""The `BatchSource` protocol and its default implementation, a shuffled dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mlx_dpo.data.shuffled_epochs import ShuffledEpochs
from mlx_dpo.distributed.communicator import Arrays
from mlx_dpo.evaluation.example_sets import ExampleSet
from mlx_dpo.evaluation.optimizer_batch import IndexedExample, indexed_examples
from mlx_dpo.training.checkpoint import ComponentState
from mlx_dpo.training.events import Metrics


class BatchSource(Protocol):
    """Provides the examples of every optimizer step. Subclass it for the defaults.

    Attributes:
        digest: identifies the data that the examples are made from; a run resumes only if it is unchanged.
        steps_per_epoch: steps in which every example is used once; None if there are no epochs, and `iters` is needed.
        can_prefetch: whether batches may be made ahead of their use in a thread; not if they depend on the policy, or
            on a state that changes from batch to batch.
    """

    digest: str
    steps_per_epoch: int | None = None
    can_prefetch: bool = False

    def batch(self, step: int) -> Sequence[IndexedExample] | None:
        """Return the examples of an optimizer batch; none if the source is exhausted, and None to skip this step.

        If several processes share the batch, each requests all of it, and encodes its own share.

        Args:
            step: optimizer steps done before this one.
        """
        ...

    def shared_values(self, indices: np.ndarray) -> Arrays:
        """Return per-example values to share with other ranks, each [examples, ...]; nothing by default.

        Args:
            indices: [examples], of this rank's examples.
        """
        return {}

    def receive_values(self, indices: np.ndarray, values: Arrays) -> None:
        """Take the `shared_values` of all ranks.

        Args:
            indices: [examples], of the whole optimizer batch.
            values: arrays [examples, ...], the scorer's among them.
        """
        return

    def after_step(self, step: int) -> None:
        """Take note that the last batch was trained on, or skipped; does nothing by default.

        A source whose state changes from batch to batch must not change what `state` returns before: a step may be
        interrupted, and is then repeated.

        Args:
            step: optimizer steps done.
        """
        return

    def report_metrics(self) -> Metrics:
        """Return metrics of the batches since the last call; none by default."""
        return {}

    def state(self) -> ComponentState:
        """Return the state that a checkpoint stores so that the next batches are the same; empty by default."""
        return ComponentState()

    def restore(self, state: ComponentState) -> None:
        """Continue from a checkpoint.

        Args:
            state: what `state` returned when it was written.
        """
        return


def batches_of_steps(source: BatchSource, first: int, last: int) -> Iterator[Sequence[IndexedExample] | None]:
    """Yield the examples of steps, up to the end of the source; None for a step to skip.

    Args:
        source: provides them.
        first: optimizer steps done before the first of these steps.
        last: optimizer steps done after the last one.
    """
    for step in range(first, last):
        examples = source.batch(step)
        if examples is not None and not len(examples):
            return
        yield examples


class ShuffledDataset(BatchSource):
    """The examples of a dataset, reshuffled in every epoch. Their order depends on the seed and the step alone."""

    can_prefetch = True

    def __init__(self, example_set: ExampleSet, batch_size: int, seed: int) -> None:
        """Make a source.

        Args:
            example_set: the examples.
            batch_size: examples of an optimizer step.
            seed: seed of the order.
        """
        self.examples = example_set.examples
        self.epochs = ShuffledEpochs(example_set.indices, batch_size, seed)
        self.steps_per_epoch = self.epochs.steps_per_epoch

    @property
    def digest(self) -> str:  # type: ignore[override]
        """Digest of the rows."""
        return self.examples.source.digest

    def batch(self, step: int) -> list[IndexedExample]:
        """Return the examples of a step, counted from 0 over all epochs; they are encoded when first needed."""
        return indexed_examples(self.examples, self.epochs.batch(step))

    def shared_values(self, indices: np.ndarray) -> Arrays:
        """Return what encoding did to the examples, for the notes on the data."""
        return {"encoding_flags": self.examples.flags[indices]}

    def receive_values(self, indices: np.ndarray, values: Arrays) -> None:
        """Store what encoding did to the examples of other ranks."""
        self.examples.flags[indices] = values["encoding_flags"]
