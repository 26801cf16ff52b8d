"""Length of the common prefix of sequences."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix_length(*sequences: Sequence[int] | str) -> int:
    """Return the length of the longest common prefix.

    Args:
        sequences: token ids or strings.

    Returns:
        Number of token ids or characters.
    """
    first, *others = sequences
    low, high = 0, min(map(len, sequences))
    while low < high:
        middle = (low + high + 1) // 2
        if all(other[:middle] == first[:middle] for other in others):
            low = middle
        else:
            high = middle - 1
    return low
