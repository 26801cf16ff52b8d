"""Memory model: limits of micro-batches, and the number of modules that are recomputed in the backward pass.

A micro-batch has enough tokens to saturate the hardware and no more: a larger one is no faster, and on a Mac the
display's watchdog ends a process whose GPU commands take long. On a CPU a longer example keeps no more activations than
such a micro-batch would, unless a memory limit allows more: other blocks are recomputed (gradient checkpointing).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import mlx.core as mx

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.activation_memory import ActivationMemory, BatchCost, pair_of_length, synthetic_pair
from mlx_dpo.forward.device import runs_on_cpu
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.token_logps import chunk_bytes

SATURATING_TOKENS = 576  # from here on, products with the weights are limited by arithmetic, not by reading memory
MIN_USEFUL_SHARE = 0.9  # share of the tokens in a micro-batch that must not be padding
COPIES_IN_BACKWARD = 2  # of the activations of one block: recomputed, or their gradients
COPIES_OF_TRAINED = 4  # two optimizer moments, and the gradients of the step and of the micro-batch
SAFE_MEMORY_SHARE = 0.5  # of the memory beside the weights, since the peak of long pairs is an estimate
PAIR_LENGTHS = range(64, 32_768, 64)  # in tokens, among which `max_pair_length` searches


@dataclass(frozen=True)
class MemoryModel:
    """Decides how large the micro-batches of a network may be.

    Attributes:
        network: the network.
        activation_memory: its activations; None if no gradients are computed.
        activation_limit: bytes of activations that may be kept for the backward pass.
        resident_bytes: bytes that stay allocated in all steps: weights, optimizer state, gradients.
        checkpoint_everything: whether all blocks are checkpointed even if memory would allow less.
        max_tokens: largest number of tokens of a micro-batch with several examples.
    """

    network: Network
    activation_memory: ActivationMemory | None = None
    activation_limit: float = math.inf
    resident_bytes: int = 0
    checkpoint_everything: bool = False
    max_tokens: int = SATURATING_TOKENS

    @classmethod
    def for_training(
        cls,
        network: Network,
        usable_bytes: int,
        memory_limit: int | None,
        grad_checkpoint: bool,
        micro_batch_share: float = 1.0,
        max_tokens: int = SATURATING_TOKENS,
    ) -> MemoryModel:
        """Measure a network and set limits for training.

        Args:
            network: the network.
            usable_bytes: memory that this machine allows (`usable_memory`).
            memory_limit: bytes to use in total, instead of `usable_bytes`. The limit of the activations is then
                memory_limit - resident_bytes - chunk_bytes - bytes recomputed inside a block. With None it is the
                same of `usable_bytes` on a GPU, where recomputing costs more than free memory, but at most the
                activations of `max_tokens` tokens on a CPU.
            grad_checkpoint: whether to checkpoint all blocks.
            micro_batch_share: factor, at most 1, on `max_tokens` and on the limit of the activations.
            max_tokens: largest number of tokens of a micro-batch with several examples.
        """
        activations = ActivationMemory.measure(network)
        return cls.with_limits(
            network,
            activations,
            mx.get_active_memory(),
            usable_bytes=usable_bytes,
            memory_limit=memory_limit,
            grad_checkpoint=grad_checkpoint,
            micro_batch_share=micro_batch_share,
            max_tokens=max_tokens,
        )

    @classmethod
    def with_limits(
        cls,
        network: Network,
        activations: ActivationMemory,
        model_bytes: int,
        *,
        usable_bytes: int,
        memory_limit: int | None,
        grad_checkpoint: bool,
        micro_batch_share: float = 1.0,
        max_tokens: int = SATURATING_TOKENS,
    ) -> MemoryModel:
        """Set limits for training.

        Args:
            network: the network.
            activations: its activations.
            model_bytes: bytes of all weights, trainable ones included.
            usable_bytes: see `for_training`.
            memory_limit: see `for_training`.
            grad_checkpoint: see `for_training`.
            micro_batch_share: see `for_training`.
            max_tokens: see `for_training`.
        """
        saturating = activations.activation_bytes(
            BatchCost.from_batch(synthetic_pair(max_tokens // 2, max_tokens // 4), network.sharing)
        )
        resident = model_bytes + COPIES_OF_TRAINED * sum(
            tensor.nbytes for tensor in trainable_tensors(network.model).values()
        )
        rest = (
            (memory_limit or usable_bytes)
            - resident
            - chunk_bytes(network.vocab_size, network.chunk_tokens)
            - COPIES_IN_BACKWARD * saturating / len(network.model.layers)
        )
        activation_limit = min(saturating, rest) if memory_limit is None and runs_on_cpu() else rest
        return cls(
            network,
            activations,
            network.min_over_ranks(micro_batch_share * activation_limit),
            resident,
            grad_checkpoint,
            int(micro_batch_share * max_tokens),
        )

    def fits(self, batch: MicroBatch) -> bool:
        """Whether these examples may form a micro-batch."""
        sharing = self.network.sharing
        if sharing is PromptSharing.ONE_PROMPT and len({prompt for prompt, _ in batch.sequences}) > 1:
            return False
        cost = BatchCost.from_batch(batch, sharing)
        little_padding = sharing is PromptSharing.NONE or cost.useful_tokens >= MIN_USEFUL_SHARE * cost.tokens
        return (
            cost.tokens <= self.max_tokens
            and little_padding
            and (
                self.activation_memory is None or self.activation_memory.activation_bytes(cost) <= self.activation_limit
            )
        )

    def num_checkpointed(self, batch: MicroBatch) -> int:
        """Number of modules to recompute in the backward pass of a micro-batch, the fewest that fit the limit.

        Args:
            batch: the micro-batch.
        """
        assert self.activation_memory is not None
        num_all, cost = self.activation_memory.num_checkpointable, BatchCost.from_batch(batch, self.network.sharing)
        if self.checkpoint_everything:
            return num_all
        return next(
            (
                count
                for count in range(num_all)
                if self.activation_memory.activation_bytes(cost, count) <= self.activation_limit
            ),
            num_all,
        )

    def peak_bytes(self, batch: MicroBatch) -> float:
        """Estimate the peak memory of a micro-batch's step, in bytes."""
        assert self.activation_memory is not None
        cost, num_checkpointed = BatchCost.from_batch(batch, self.network.sharing), self.num_checkpointed(batch)
        block_bytes = self.activation_memory.activation_bytes(cost) / len(self.network.model.layers)
        inside = COPIES_IN_BACKWARD * block_bytes
        return (
            self.resident_bytes
            + self.activation_memory.activation_bytes(cost, num_checkpointed)
            + max(chunk_bytes(self.network.vocab_size, self.network.chunk_tokens), inside)
        )

    def max_pair_length(self, limit: int) -> int:
        """The longest `pair_of_length` that surely fits, in tokens; 0 if not even a short one does.

        Args:
            limit: bytes that may be used in total.
        """
        safe_limit = self.resident_bytes + SAFE_MEMORY_SHARE * (limit - self.resident_bytes)

        def is_too_long(tokens: int) -> bool:
            pair = pair_of_length(tokens)
            is_checkpointed = self.num_checkpointed(pair) == self.network.num_checkpointable
            return is_checkpointed and self.peak_bytes(pair) > safe_limit

        num_fitting = bisect_right(PAIR_LENGTHS, False, key=is_too_long)
        return PAIR_LENGTHS[num_fitting - 1] if num_fitting else 0
