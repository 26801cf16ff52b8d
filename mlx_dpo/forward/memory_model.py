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

from mlx_dpo.adapters.attach import trainable
from mlx_dpo.data.micro_batches import MicroBatch, collate_forked
from mlx_dpo.forward.attention import QUERIES
from mlx_dpo.forward.network import Network, Sharing
from mlx_dpo.forward.token_logps import CHUNK_BYTES

BUSY = 576  # slots whose products with the weights use a GPU's arithmetic, not its memory, to the full
NEEDED = 0.9  # share of the slots in a micro-batch that must not be padding
COPIES = 4  # of what is trained: two moments, and the gradients of the step and of the micro-batch


@dataclass(frozen=True)
class Work:
    """What goes through the model for a micro-batch.

    Attributes:
        slots: tokens, padding included.
        needed: those that are not padding, and not there twice where prompts are shared.
        scores: products of a query with a key, of one attention head.
    """

    slots: int
    needed: int
    scores: int

    @classmethod
    def of(cls, batch: MicroBatch, sharing: Sharing) -> Work:
        """By the shapes that `Network` gives it."""
        if sharing is Sharing.NONE:
            lengths = [len(prompt) + len(completion) - 1 for prompt, completion in batch.sequences]
            slots = len(lengths) * max(lengths)
            return cls(slots, sum(lengths), slots * _keys(max(lengths)))
        forked = collate_forked(batch.sequences)
        prompt = forked.prompts.shape[1]
        scores = forked.prompts.size * (prompt if forked.padding.any() else _keys(prompt))
        scores += sum(group.inputs.size * (prompt + group.inputs.shape[1]) for group in forked.completions)
        prompts = {prompt for prompt, _ in batch.sequences}
        needed = sum(len(prompt) - 1 for prompt in prompts) + sum(len(completion) for _, completion in batch.sequences)
        return cls(forked.slots, needed, scores)


def _keys(length: int) -> int:
    """Keys that a query meets on average under a causal mask, which is trimmed by blocks."""
    return min(length, (length + QUERIES) // 2)


def example(prompt: int, completion: int) -> MicroBatch:
    """A pair of such lengths, in tokens."""
    asked = tuple(2 + i % 5 for i in range(prompt))
    return MicroBatch((0,), tuple((asked, tuple(first + i % 3 for i in range(completion))) for first in (2, 3)))


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for its backward pass, measured on this network.

    Attributes:
        slot, score: of each, see `Work`.
        slot_small, slot_least: of a slot, where every feed-forward is computed again, and where every block is.
        small, parts: how many feed-forwards there are, and how many of them and blocks (`Network.parts`).
    """

    slot: float
    score: float
    slot_small: float
    slot_least: float
    small: int
    parts: int

    @classmethod
    def measured(cls, network: Network) -> Kept:
        """From two pairs of unlike length. Takes as long as a forward pass of some hundred tokens."""
        short, long = example(33, 16), example(257, 32)
        network.kept(short)  # what a model makes when it is first called is made
        gc.collect()  # nor is anything let go of between two readings
        a, b = Work.of(short, network.sharing), Work.of(long, network.sharing)
        kept_short, kept_long = network.kept(short), network.kept(long)
        score = max(0.0, (kept_long - kept_short * b.slots / a.slots) / (b.scores - a.scores * b.slots / a.slots))
        small, parts = network.parts - len(network.model.layers), network.parts
        without_small = network.kept(long, small) - score * b.scores
        slot = (kept_long - score * b.scores) / b.slots
        return cls(slot, score, without_small / b.slots, network.kept(long, parts) / b.slots, small, parts)

    def of(self, work: Work, recomputed: int = 0) -> float:
        """Where so many parts are computed again."""
        scores = work.scores * self.score
        whole, least = work.slots * self.slot + scores, work.slots * self.slot_least
        if recomputed < self.small:
            return whole - work.slots * (self.slot - self.slot_small) * recomputed / self.small
        without_small = work.slots * self.slot_small + scores
        return without_small - (without_small - least) * (recomputed - self.small) / (self.parts - self.small)


@dataclass(frozen=True)
class Budget:
    """What a network's micro-batches may be.

    Attributes:
        kept: None where no gradient is asked for.
        bytes: that may be kept for the backward pass.
        held: bytes there from the first step to the last: weights, optimizer state, gradients.
        slots: that a micro-batch of several examples may have.
        always_recompute: asked for, whether memory needs it or not.
    """

    network: Network
    kept: Kept | None = None
    bytes: float = math.inf
    held: int = 0
    always_recompute: bool = False
    slots: int = BUSY

    @classmethod
    def for_training(
        cls, network: Network, usable: int, limit: int | None, grad_checkpoint: bool, share: float = 1.0
    ) -> Budget:
        """Within `limit` bytes in all; by default within what `BUSY` slots keep, and `usable` bytes in all.

        Args:
            share: of the slots and bytes that a micro-batch could have.
        """
        kept = Kept.measured(network)
        busy = kept.of(Work.of(example(BUSY // 2, BUSY // 4), network.sharing))
        held = mx.get_active_memory() + COPIES * sum(v.nbytes for v in trainable(network.model).values())
        rest = (limit or usable) - held - _head(network) - busy / len(network.model.layers)
        bytes = network.least(share * (rest if limit else min(busy, rest)))
        return cls(network, kept, bytes, held, grad_checkpoint, int(share * BUSY))

    def fits(self, batch: MicroBatch) -> bool:
        """Whether these pairs may go together."""
        sharing = self.network.sharing
        if sharing is Sharing.ONE and len({prompt for prompt, _ in batch.sequences}) > 1:
            return False
        work = Work.of(batch, sharing)
        full = sharing is Sharing.NONE or work.needed >= NEEDED * work.slots
        return work.slots <= self.slots and full and (self.kept is None or self.kept.of(work) <= self.bytes)

    def recomputed(self, batch: MicroBatch) -> int:
        """How many of the network's parts are to be computed again in the backward pass."""
        assert self.kept is not None
        parts, work = self.kept.parts, Work.of(batch, self.network.sharing)
        if self.always_recompute:
            return parts
        return next((count for count in range(parts) if self.kept.of(work, count) <= self.bytes), parts)

    def peak(self, batch: MicroBatch) -> float:
        """An estimate of the most memory that is taken for a micro-batch, in bytes."""
        assert self.kept is not None
        work, recomputed = Work.of(batch, self.network.sharing), self.recomputed(batch)
        a_block = self.kept.of(work) / len(self.network.model.layers)
        inside = 2 * a_block if recomputed == self.kept.parts else 0  # what it keeps, and the gradient of that
        return self.held + self.kept.of(work, recomputed) + max(_head(self.network), inside)


def _head(network: Network) -> int:
    """Bytes of a chunk's logits, probabilities and slopes."""
    return 3 * min(CHUNK_BYTES, 4 * network.vocabulary * BUSY)
