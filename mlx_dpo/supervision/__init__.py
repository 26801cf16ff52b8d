"""Training in a child process, so that what ends a process does not end a run."""

from __future__ import annotations

from mlx_dpo.supervision.supervisor import supervise

__all__ = ["supervise"]
