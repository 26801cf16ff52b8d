"""Micro-batch size for nearly full speed, chosen from the times of two small micro-batches.

A micro-batch takes a fixed time, in which weights are read and kernels are started, and a time for every token. Only
GPUs are measured: on a CPU the fixed part is small, and a fixed size gives every run the same rounding.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dpo.forward.activation_memory import synthetic_pair
from mlx_dpo.forward.memory_model import SATURATING_TOKENS, MemoryModel
from mlx_dpo.utils.random_state import random_state

MEASURED_TOKENS = (SATURATING_TOKENS // 4, SATURATING_TOKENS)
FULL_SPEED_SHARE = 0.95  # of the speed of an endless micro-batch
# Forward and backward pass of one block. Metal's watchdog ends a process whose command takes a few seconds; mlx starts
# a new command after at most a few dozen operations, which is about a block in one direction.
MAX_BLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a forward and backward pass.

    Attributes:
        fixed: seconds that do not depend on the number of tokens.
        per_token: seconds per token.
    """

    fixed: float
    per_token: float

    @classmethod
    def measure(cls, memory_model: MemoryModel) -> StepTime:
        """Time micro-batches of two sizes, without changing weights or random state."""
        small, large = MEASURED_TOKENS
        seed = random_state()
        _seconds(memory_model, small)  # kernels are compiled and memory is allocated
        few, many = _seconds(memory_model, small), _seconds(memory_model, large)
        mx.random.seed(seed)
        per_token = max(many - few, 1e-9) / (large - small)
        return cls(max(0.0, few - small * per_token), per_token)

    def efficient_tokens(self, num_blocks: int) -> int:
        """The fewest tokens that reach `FULL_SPEED_SHARE`, in steps of `SATURATING_TOKENS`.

        Args:
            num_blocks: number of the model's blocks. None of them takes longer than `MAX_BLOCK_SECONDS`, unless that
                allows less than one step.
        """
        enough = self.fixed * FULL_SPEED_SHARE / (1 - FULL_SPEED_SHARE) / self.per_token
        most = (MAX_BLOCK_SECONDS * num_blocks - self.fixed) / self.per_token
        steps = min(math.ceil(enough / SATURATING_TOKENS), int(most / SATURATING_TOKENS))
        return max(1, steps) * SATURATING_TOKENS


def choose_micro_batch_tokens(memory_model: MemoryModel) -> int:
    """Measure how many tokens a micro-batch should have; takes a few passes of a few hundred tokens."""
    network = memory_model.network
    return int(network.min_over_ranks(StepTime.measure(memory_model).efficient_tokens(len(network.model.layers))))


def _seconds(memory_model: MemoryModel, tokens: int) -> float:
    batch = synthetic_pair(tokens // 2, tokens // 4)
    start = time.perf_counter()
    trace = memory_model.network.trace(batch, memory_model.num_checkpointed(batch))
    trace.gradient(np.ones(len(batch.sequences)))
    return time.perf_counter() - start
