"""The state of mlx's random number generator, as a seed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


def random_state() -> int:
    """The seed with which `mx.random.seed` restores the current state, a key of two 32-bit words."""
    state: Any = mx.random.state  # its stub says object
    high, low = state[0].tolist()
    return high << 32 | low
