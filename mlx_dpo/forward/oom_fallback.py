"""How much less than it could a run takes, once the system has ended it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OomFallback:
    """What a run does without after the system has ended it: a share of the micro-batch, and what it keeps.

    Attributes:
        share: of the micro-batch that there could be; the optimizer batch stays what it is.
        grad_checkpoint: whether all is computed again in the backward pass.
    """

    micro_batch_share: float = 1.0
    grad_checkpoint: bool = False


NO_FALLBACK = OomFallback()
