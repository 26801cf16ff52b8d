"""The bytes of activations that a micro-batch keeps for its backward pass, from its tokens and attention scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mlx_dpo.data.micro_batches import MicroBatch
from mlx_dpo.forward.attention import QUERY_BLOCK
from mlx_dpo.forward.network import Network, PromptSharing

ActivationBytes = Callable[[MicroBatch, int], int]  # (micro-batch, number of checkpointed modules) -> bytes


@dataclass(frozen=True)
class BatchCost:
    """The work of a micro-batch's forward pass.

    Attributes:
        tokens: tokens that go through the model, padding included.
        useful_tokens: tokens without padding; if prompts are shared, each prompt counts once.
        attention_scores: query-key products of one attention head.
    """

    tokens: int
    useful_tokens: int
    attention_scores: int

    @classmethod
    def from_batch(cls, batch: MicroBatch, sharing: PromptSharing) -> BatchCost:
        """Compute the cost of a micro-batch from the shapes that `Network` uses.

        Args:
            batch: the micro-batch.
            sharing: how its completions share their prompts.
        """
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
        bytes_per_token: bytes per token without gradient checkpointing.
        bytes_per_score: bytes per query-key product, see `BatchCost`.
        bytes_per_token_without_feed_forward: bytes per token with every feed-forward checkpointed.
        bytes_per_token_checkpointed: bytes per token with every block checkpointed.
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
        """Measure two pairs of different lengths; takes as long as a forward pass of a few hundred tokens."""
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
        """Estimate the activation bytes of a micro-batch.

        Args:
            cost: its cost.
            num_checkpointed: number of modules that are checkpointed.
        """
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
