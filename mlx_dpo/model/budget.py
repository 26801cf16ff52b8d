"""How large a micro-batch may be: as few tokens as keep the machine busy, and no more than memory holds.

A larger micro-batch than that is no faster, and on a Mac the display's watchdog ends a process whose GPU commands are
long.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dpo.data.batches import MicroBatch, collate_forked
from mlx_dpo.model.network import Network, Sharing

BUSY = 512  # tokens whose products with the weights use a GPU's arithmetic, not its memory, to the full
NEEDED = 0.9  # share of the tokens in a micro-batch that must not be padding
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Budget:
    """What a network's micro-batches may be.

    Attributes:
        bytes: for activations, once the weights are held.
        kept, kept_checkpointed: bytes that a token leaves for the backward pass (with checkpointing, one block's at a
            time and each block's input).
        always_checkpoint: asked for, whether memory needs it or not.
    """

    network: Network
    bytes: int
    kept: int
    kept_checkpointed: int
    always_checkpoint: bool

    @classmethod
    def of(cls, network: Network, limit: int, grad_checkpoint: bool) -> Budget:
        """An estimate from the widths of the model's layers."""
        held = sum(v.nbytes for _, v in tree_flatten(network.model.parameters()))
        widths = [sum(_width(m) for _, m in layer.named_modules()) for layer in network.model.layers]
        inputs = len(widths) * min(filter(None, widths), default=0) // 8
        kept, checkpointed = 3 * FLOAT * sum(widths), 3 * FLOAT * (max(widths, default=0) + inputs)
        return cls(network, limit - held, kept, checkpointed, grad_checkpoint)

    def fits(self, batch: MicroBatch) -> bool:
        """Whether these pairs may go together."""
        prompts = {prompt for prompt, _ in batch.sequences}
        if self.network.sharing is Sharing.ONE and len(prompts) > 1:
            return False
        slots = self._slots(batch)
        needed = sum(len(prompt) - 1 for prompt in prompts) + sum(len(completion) for _, completion in batch.sequences)
        full = self.network.sharing is Sharing.NONE or needed >= NEEDED * slots
        return slots <= BUSY and full and slots * self.kept <= self.bytes

    def checkpoints(self, batch: MicroBatch) -> bool:
        """Whether a micro-batch's blocks are to be computed again in the backward pass."""
        return self.always_checkpoint or self._slots(batch) * self.kept > self.bytes

    def _slots(self, batch: MicroBatch) -> int:
        if self.network.sharing is not Sharing.NONE:
            return collate_forked(batch.sequences).slots
        return len(batch.sequences) * max(len(prompt) + len(completion) for prompt, completion in batch.sequences)


def _width(module: nn.Module) -> int:
    """Floats a token leaves behind in a linear layer: its output, and about as much input."""
    weight = module.get("weight")
    is_linear = (
        weight is not None and weight.ndim >= 2 and not isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
    )
    return 2 * weight.shape[-2] if is_linear else 0
