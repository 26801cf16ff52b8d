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
_OUT_OF_MEMORY_WORDS = (
    "memory",
    "malloc",
)  # in mlx's exceptions for failed allocations, which have no class of their own


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of mlx or Python says that an allocation failed."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _OUT_OF_MEMORY_WORDS)
