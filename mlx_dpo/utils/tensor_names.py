"""Names of a model's tensors."""

from __future__ import annotations

import re


def block_prefix(name: str) -> str:
    """The common prefix of the names of a block's tensors, for one of them; empty outside of blocks."""
    match = re.match(r".*?\blayers\.\d+\b", name)
    return match.group() if match else ""
