"""Throughput of training: pairs, tokens and bytes per second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlx_dpo.distributed.communicator import Communicator
from mlx_dpo.training.events import Metrics


@dataclass
class ThroughputMeter:
    """Time and work of the steps since the last report; evaluations and saves don't count.

    Attributes:
        communicator: ranks that train together.
        seconds: time spent in `measure`.
        examples: examples of all ranks.
        tokens: tokens of all ranks' micro-batches.
        steps: optimizer steps.
        bytes_sent: bytes that this rank sent.
    """

    communicator: Communicator
    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    steps: int = 0
    bytes_sent: int = 0

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Add the time and the bytes that the body takes."""
        began, bytes_before = time.perf_counter(), self.communicator.bytes_sent
        yield
        self.seconds += time.perf_counter() - began
        self.bytes_sent += self.communicator.bytes_sent - bytes_before

    def metrics(self) -> Metrics:
        """Return the rates of a report and, if several ranks share a batch, the bytes sent per step."""
        seconds = max(self.seconds, 1e-9)
        rates = {"pairs_per_second": self.examples / seconds, "tokens_per_second": self.tokens / seconds}
        if self.communicator.size > 1 and self.communicator.data_parallel:
            rates["bytes_sent"] = self.bytes_sent / max(1, self.steps)
        return rates
