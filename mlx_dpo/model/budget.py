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

from mlx_dpo.data.batches import MicroBatch, collate_forked
from mlx_dpo.model.attention import QUERIES
from mlx_dpo.model.loading import trainable
from mlx_dpo.model.network import Network, Sharing
from mlx_dpo.model.token_logps import CHUNK_BYTES

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
        slot_recomputed: of a slot, where every block is computed again.
    """

    slot: float
    score: float
    slot_recomputed: float

    @classmethod
    def measured(cls, network: Network) -> Kept:
        """From two pairs of unlike length. Takes as long as a forward pass of some hundred tokens."""
        short, long = example(33, 16), example(257, 32)
        network.kept(short)  # what a model makes when it is first called is made
        gc.collect()  # nor is anything let go of between two readings
        a, b = Work.of(short, network.sharing), Work.of(long, network.sharing)
        kept_short, kept_long = network.kept(short), network.kept(long)
        score = max(0.0, (kept_long - kept_short * b.slots / a.slots) / (b.scores - a.scores * b.slots / a.slots))
        slot = (kept_long - score * b.scores) / b.slots
        return cls(slot, score, network.kept(long, recomputed=len(network.model.layers)) / b.slots)

    def of(self, work: Work) -> float:
        """Where nothing is computed again."""
        return work.slots * self.slot + work.scores * self.score


@dataclass(frozen=True)
class Budget:
    """What a network's micro-batches may be.

    Attributes:
        kept: None where no gradient is asked for.
        bytes: that may be kept for the backward pass.
        held: bytes there from the first step to the last: weights, optimizer state, gradients.
        always_recompute: asked for, whether memory needs it or not.
    """

    network: Network
    kept: Kept | None = None
    bytes: float = math.inf
    held: int = 0
    always_recompute: bool = False

    @classmethod
    def for_training(cls, network: Network, usable: int, limit: int | None, grad_checkpoint: bool) -> Budget:
        """Within `limit` bytes in all; by default within what `BUSY` slots keep, and `usable` bytes in all."""
        kept = Kept.measured(network)
        busy = kept.of(Work.of(example(BUSY // 2, BUSY // 4), network.sharing))
        held = mx.get_active_memory() + COPIES * sum(v.nbytes for v in trainable(network.model).values())
        rest = (limit or usable) - held - _head(network) - busy / len(network.model.layers)
        return cls(network, kept, rest if limit else min(busy, rest), held, grad_checkpoint)

    def fits(self, batch: MicroBatch) -> bool:
        """Whether these pairs may go together."""
        sharing = self.network.sharing
        if sharing is Sharing.ONE and len({prompt for prompt, _ in batch.sequences}) > 1:
            return False
        work = Work.of(batch, sharing)
        full = sharing is Sharing.NONE or work.needed >= NEEDED * work.slots
        return work.slots <= BUSY and full and (self.kept is None or self.kept.of(work) <= self.bytes)

    def recomputed(self, batch: MicroBatch) -> int:
        """How many of the model's blocks are to be computed again in the backward pass."""
        blocks = len(self.network.model.layers)
        if self.always_recompute or self.kept is None:
            return blocks
        whole, least = self._kept(batch)
        if whole <= self.bytes:
            return 0
        return min(blocks, math.ceil(blocks * (whole - self.bytes) / max(1.0, whole - least)))

    def peak(self, batch: MicroBatch) -> float:
        """An estimate of the most memory that is taken for a micro-batch, in bytes."""
        (whole, least), blocks = self._kept(batch), len(self.network.model.layers)
        recomputed = self.recomputed(batch)
        kept = whole + (least - whole) * recomputed / blocks
        one_block = 2 * whole / blocks if recomputed == blocks else 0  # what it keeps, and the gradient of that
        return self.held + kept + max(_head(self.network), one_block)

    def _kept(self, batch: MicroBatch) -> tuple[float, float]:
        """Bytes that a micro-batch keeps where nothing, and where all is computed again."""
        assert self.kept is not None
        work = Work.of(batch, self.network.sharing)
        return self.kept.of(work), work.slots * self.kept.slot_recomputed


def _head(network: Network) -> int:
    """Bytes of a chunk's logits, probabilities and slopes."""
    return 3 * min(CHUNK_BYTES, 4 * network.vocabulary * BUSY)
