"""How large a micro-batch may be, and how many of its activations are kept for the backward pass.

A micro-batch has enough tokens to saturate the hardware and no more: a larger one is no faster, and on a Mac the
display's watchdog ends a process whose GPU commands take long. A longer example keeps no more activations than such a
micro-batch would, unless a memory limit allows more: other blocks are recomputed (gradient checkpointing).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.attention import QUERY_BLOCK
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.token_logps import chunk_bytes

SATURATING_TOKENS = 576  # with so many tokens, products with the weights are limited by arithmetic, not by memory
MIN_USEFUL_SHARE = 0.9  # share of the tokens in a micro-batch that must not be padding
COPIES_IN_BACKWARD = 2  # of the activations of one block: recomputed, or their gradients
COPIES_OF_TRAINED = 4  # two optimizer moments, and the gradients of the step and of the micro-batch
SAFE_MEMORY_SHARE = 0.5  # of the memory beside the weights, since the peak of long pairs is an estimate
PAIR_LENGTHS = range(64, 32_768, 64)  # in tokens, among which `max_pair_length` searches

ActivationBytes = Callable[[MicroBatch, int], int]  # (micro-batch, number of checkpointed modules) -> bytes


@dataclass(frozen=True)
class BatchCost:
    """The work of a micro-batch's forward pass.

    Attributes:
        tokens: tokens that go through the model, padding included.
        useful_tokens: tokens without padding; where prompts are shared, each prompt counts once.
        attention_scores: query-key products of one attention head.
    """

    tokens: int
    useful_tokens: int
    attention_scores: int

    @classmethod
    def from_batch(cls, batch: MicroBatch, sharing: PromptSharing) -> BatchCost:
        """Count them from the shapes that `Network` uses."""
        if sharing is PromptSharing.NONE:
            lengths = [len(prompt) + len(completion) - 1 for prompt, completion in batch.sequences]
            tokens = len(lengths) * max(lengths)
            return cls(tokens, sum(lengths), tokens * _mean_keys(max(lengths)))
        shared = batch.shared_prompts
        prompt = shared.prompts.shape[1]
        scores = shared.prompts.size * (prompt if shared.left_padding.any() else _mean_keys(prompt))
        scores += sum(group.inputs.size * (prompt + group.inputs.shape[1]) for group in shared.completion_groups)
        prompts = {prompt for prompt, _ in batch.sequences}
        useful = sum(len(prompt) - 1 for prompt in prompts) + sum(len(completion) for _, completion in batch.sequences)
        return cls(shared.num_tokens, useful, scores)


def _mean_keys(length: int) -> int:
    """Mean number of keys per query under a causal mask with blockwise attention."""
    return min(length, (length + QUERY_BLOCK) // 2)


def synthetic_pair(prompt: int, completion: int) -> MicroBatch:
    """A micro-batch of one pair with made-up tokens.

    Args:
        prompt: its prompt's length in tokens.
        completion: the length of both completions in tokens.
    """
    prompt_ids = tuple(2 + i % 5 for i in range(prompt))
    return MicroBatch((0,), tuple((prompt_ids, tuple(first + i % 3 for i in range(completion))) for first in (2, 3)))


def pair_of_length(tokens: int) -> MicroBatch:
    """A synthetic pair of so many tokens of prompt and completion, whose prompt is twice as long as a completion."""
    return synthetic_pair(2 * tokens // 3, tokens // 3)


_SHORT_PAIR, _LONG_PAIR = synthetic_pair(33, 16), synthetic_pair(257, 32)


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of activations that a forward pass keeps for its backward pass.

    Attributes:
        bytes_per_token: without checkpointing.
        bytes_per_score: per query-key product, see `BatchCost`.
        bytes_per_token_without_feed_forward: with every feed-forward checkpointed.
        bytes_per_token_checkpointed: with every block checkpointed.
        num_feed_forwards: number of feed-forward modules.
        num_checkpointable: number of feed-forwards and blocks together.
    """

    bytes_per_token: float
    bytes_per_score: float
    bytes_per_token_without_feed_forward: float
    bytes_per_token_checkpointed: float
    num_feed_forwards: int
    num_checkpointable: int

    @classmethod
    def measure(cls, network: Network) -> ActivationMemory:
        """Measure two pairs of different lengths; takes as long as a forward pass of some hundred tokens."""
        network.activation_bytes(_SHORT_PAIR)  # a model's first call allocates what it caches
        return cls.from_two_pairs(network, network.activation_bytes)

    @classmethod
    def from_two_pairs(cls, network: Network, activation_bytes: ActivationBytes) -> ActivationMemory:
        """Fit it to the bytes of two pairs of different lengths.

        Args:
            network: the network.
            activation_bytes: `Network.activation_bytes`, or an estimate of it.
        """
        a, b = BatchCost.from_batch(_SHORT_PAIR, network.sharing), BatchCost.from_batch(_LONG_PAIR, network.sharing)
        short_bytes, long_bytes = activation_bytes(_SHORT_PAIR, 0), activation_bytes(_LONG_PAIR, 0)
        per_score = max(
            0.0,
            (long_bytes - short_bytes * b.tokens / a.tokens)
            / (b.attention_scores - a.attention_scores * b.tokens / a.tokens),
        )
        num_small, num_all = network.num_checkpointable - len(network.model.layers), network.num_checkpointable
        without_small = activation_bytes(_LONG_PAIR, num_small) - per_score * b.attention_scores
        per_token = (long_bytes - per_score * b.attention_scores) / b.tokens
        return cls(
            per_token,
            per_score,
            without_small / b.tokens,
            activation_bytes(_LONG_PAIR, num_all) / b.tokens,
            num_small,
            num_all,
        )

    def activation_bytes(self, cost: BatchCost, num_checkpointed: int = 0) -> float:
        """Estimate the activation bytes of a micro-batch with `num_checkpointed` modules checkpointed."""
        scores = cost.attention_scores * self.bytes_per_score
        whole, least = cost.tokens * self.bytes_per_token + scores, cost.tokens * self.bytes_per_token_checkpointed
        if num_checkpointed < self.num_feed_forwards:
            return (
                whole
                - cost.tokens
                * (self.bytes_per_token - self.bytes_per_token_without_feed_forward)
                * num_checkpointed
                / self.num_feed_forwards
            )
        without_small = cost.tokens * self.bytes_per_token_without_feed_forward + scores
        return without_small - (without_small - least) * (num_checkpointed - self.num_feed_forwards) / (
            self.num_checkpointable - self.num_feed_forwards
        )


@dataclass(frozen=True)
class MemoryModel:
    """Decides how large the micro-batches of a network may be.

    Attributes:
        network: the network.
        activation_memory: None where no gradients are computed.
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
    ) -> MemoryModel:
        """Measure a network and set limits for training.

        Args:
            network: the network.
            usable_bytes: memory that may be used on this machine.
            memory_limit: bytes to use in total; None for what `SATURATING_TOKENS` tokens need.
            grad_checkpoint: whether to checkpoint all blocks.
            micro_batch_share: share of the allowed tokens and activation bytes to use.
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
    ) -> MemoryModel:
        """Set limits for training; arguments as of `for_training`, and:

        Args:
            activations: of the network.
            model_bytes: of the weights, those that are trained included.
        """
        saturating = activations.activation_bytes(
            BatchCost.from_batch(synthetic_pair(SATURATING_TOKENS // 2, SATURATING_TOKENS // 4), network.sharing)
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
        limit = network.min_over_ranks(micro_batch_share * (rest if memory_limit else min(saturating, rest)))
        return cls(network, activations, limit, resident, grad_checkpoint, int(micro_batch_share * SATURATING_TOKENS))

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
        """Number of modules to checkpoint for a micro-batch."""
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
        """The longest `pair_of_length` that surely fits into so many bytes; 0 where not even a short one does."""
        safe_limit = self.resident_bytes + SAFE_MEMORY_SHARE * (limit - self.resident_bytes)

        def is_too_long(tokens: int) -> bool:
            pair = pair_of_length(tokens)
            is_checkpointed = self.num_checkpointed(pair) == self.network.num_checkpointable
            return is_checkpointed and self.peak_bytes(pair) > safe_limit

        num_fitting = bisect_right(PAIR_LENGTHS, False, key=is_too_long)
        return PAIR_LENGTHS[num_fitting - 1] if num_fitting else 0
