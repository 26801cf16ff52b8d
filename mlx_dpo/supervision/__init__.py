"""Training in a child process, which is restarted if it crashes."""

from __future__ import annotations

from mlx_dpo.supervision.supervisor import supervise

__all__ = ["supervise"]
