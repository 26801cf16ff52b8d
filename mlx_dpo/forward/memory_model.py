"""How large a micro-batch may be, and how much of it is kept for the backward pass.

Enough tokens to keep the machine busy go together, and no more: a larger micro-batch is no faster, and on a Mac the
display's watchdog ends a process whose GPU commands are long. What is longer by itself keeps no more than those would,
unless a memory limit allows it: the blocks beyond are computed again in the backward pass (gradient checkpointing).
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass

import mlx.core as mx

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.attention import QUERY_BLOCK
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.token_logps import CHUNK_BYTES

SATURATING_TOKENS = 576  # slots whose products with the weights use a GPU's arithmetic, not its memory, to the full
MIN_USEFUL_SHARE = 0.9  # share of the slots in a micro-batch that must not be padding
COPIES_OF_TRAINED = 4  # of what is trained: two moments, and the gradients of the step and of the micro-batch


@dataclass(frozen=True)
class BatchCost:
    """What goes through the model for a micro-batch.

    Attributes:
        slots: tokens, padding included.
        needed: those that are not padding, and not there twice where prompts are shared.
        scores: products of a query with a key, of one attention head.
    """

    tokens: int
    useful_tokens: int
    attention_scores: int

    @classmethod
    def from_batch(cls, batch: MicroBatch, sharing: PromptSharing) -> BatchCost:
        """By the shapes that `Network` gives it."""
        if sharing is PromptSharing.NONE:
            lengths = [len(prompt) + len(completion) - 1 for prompt, completion in batch.sequences]
            slots = len(lengths) * max(lengths)
            return cls(slots, sum(lengths), slots * _keys(max(lengths)))
        forked = batch.shared_prompts
        prompt = forked.prompts.shape[1]
        scores = forked.prompts.size * (prompt if forked.left_padding.any() else _keys(prompt))
        scores += sum(group.inputs.size * (prompt + group.inputs.shape[1]) for group in forked.completion_groups)
        prompts = {prompt for prompt, _ in batch.sequences}
        needed = sum(len(prompt) - 1 for prompt in prompts) + sum(len(completion) for _, completion in batch.sequences)
        return cls(forked.num_tokens, needed, scores)


def _keys(length: int) -> int:
    """Keys that a query meets on average under a causal mask, which is trimmed by blocks."""
    return min(length, (length + QUERY_BLOCK) // 2)


def synthetic_pair(prompt: int, completion: int) -> MicroBatch:
    """A pair of such lengths, in tokens."""
    asked = tuple(2 + i % 5 for i in range(prompt))
    return MicroBatch((0,), tuple((asked, tuple(first + i % 3 for i in range(completion))) for first in (2, 3)))


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes that a forward pass keeps for its backward pass, measured on this network.

    Attributes:
        slot, score: of each, see `Work`.
        slot_small, slot_least: of a slot, where every feed-forward is computed again, and where every block is.
        small, parts: how many feed-forwards there are, and how many of them and blocks (`Network.parts`).
    """

    bytes_per_token: float
    bytes_per_score: float
    bytes_per_token_without_feed_forward: float
    bytes_per_token_checkpointed: float
    num_feed_forwards: int
    num_checkpointable: int

    @classmethod
    def measure(cls, network: Network) -> ActivationMemory:
        """From two pairs of unlike length. Takes as long as a forward pass of some hundred tokens."""
        short, long = synthetic_pair(33, 16), synthetic_pair(257, 32)
        network.activation_bytes(short)  # what a model makes when it is first called is made
        gc.collect()  # nor is anything let go of between two readings
        a, b = BatchCost.from_batch(short, network.sharing), BatchCost.from_batch(long, network.sharing)
        kept_short, kept_long = network.activation_bytes(short), network.activation_bytes(long)
        score = max(
            0.0,
            (kept_long - kept_short * b.tokens / a.tokens)
            / (b.attention_scores - a.attention_scores * b.tokens / a.tokens),
        )
        small, parts = network.num_checkpointable - len(network.model.layers), network.num_checkpointable
        without_small = network.activation_bytes(long, small) - score * b.attention_scores
        slot = (kept_long - score * b.attention_scores) / b.tokens
        return cls(
            slot, score, without_small / b.tokens, network.activation_bytes(long, parts) / b.tokens, small, parts
        )

    def activation_bytes(self, cost: BatchCost, num_checkpointed: int = 0) -> float:
        """Where so many parts are computed again."""
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
    """What a network's micro-batches may be.

    Attributes:
        kept: None where no gradient is asked for.
        bytes: that may be kept for the backward pass.
        held: bytes there from the first step to the last: weights, optimizer state, gradients.
        slots: that a micro-batch of several examples may have.
        always_recompute: asked for, whether memory needs it or not.
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
        """Within `limit` bytes in all; by default within what `BUSY` slots keep, and `usable` bytes in all.

        Args:
            share: of the slots and bytes that a micro-batch could have.
        """
        kept = ActivationMemory.measure(network)
        busy = kept.activation_bytes(
            BatchCost.from_batch(synthetic_pair(SATURATING_TOKENS // 2, SATURATING_TOKENS // 4), network.sharing)
        )
        held = mx.get_active_memory() + COPIES_OF_TRAINED * sum(
            v.nbytes for v in trainable_tensors(network.model).values()
        )
        rest = (memory_limit or usable_bytes) - held - _head(network) - busy / len(network.model.layers)
        bytes = network.min_over_ranks(micro_batch_share * (rest if memory_limit else min(busy, rest)))
        return cls(network, kept, bytes, held, grad_checkpoint, int(micro_batch_share * SATURATING_TOKENS))

    def fits(self, batch: MicroBatch) -> bool:
        """Whether these pairs may go together."""
        sharing = self.network.sharing
        if sharing is PromptSharing.ONE_PROMPT and len({prompt for prompt, _ in batch.sequences}) > 1:
            return False
        work = BatchCost.from_batch(batch, sharing)
        full = sharing is PromptSharing.NONE or work.useful_tokens >= MIN_USEFUL_SHARE * work.tokens
        return (
            work.tokens <= self.max_tokens
            and full
            and (
                self.activation_memory is None or self.activation_memory.activation_bytes(work) <= self.activation_limit
            )
        )

    def num_checkpointed(self, batch: MicroBatch) -> int:
        """How many of the network's parts are to be computed again in the backward pass."""
        assert self.activation_memory is not None
        parts, work = self.activation_memory.num_checkpointable, BatchCost.from_batch(batch, self.network.sharing)
        if self.checkpoint_everything:
            return parts
        return next(
            (
                count
                for count in range(parts)
                if self.activation_memory.activation_bytes(work, count) <= self.activation_limit
            ),
            parts,
        )

    def peak_bytes(self, batch: MicroBatch) -> float:
        """An estimate of the most memory that is taken for a micro-batch, in bytes."""
        assert self.activation_memory is not None
        work, recomputed = BatchCost.from_batch(batch, self.network.sharing), self.num_checkpointed(batch)
        a_block = self.activation_memory.activation_bytes(work) / len(self.network.model.layers)
        inside = (
            2 * a_block if recomputed == self.activation_memory.num_checkpointable else 0
        )  # what it keeps, and the gradient of that
        return (
            self.resident_bytes
            + self.activation_memory.activation_bytes(work, recomputed)
            + max(_head(self.network), inside)
        )


def _head(network: Network) -> int:
    """Bytes of a chunk's logits, probabilities and slopes."""
    return 3 * min(CHUNK_BYTES, 4 * network.vocab_size * SATURATING_TOKENS)
