"""Reduced-memory settings for a run that is restarted after an out-of-memory crash."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OomFallback:
    """Memory reductions applied after an out-of-memory crash.

    Attributes:
        micro_batch_share: fraction of the usual micro-batch size, in (0, 1]; the optimizer batch is unchanged.
        grad_checkpoint: whether to recompute all layers in the backward pass.
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
