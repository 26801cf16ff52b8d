"""With how many items sequences begin alike."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix_length(*sequences: Sequence[int] | str) -> int:
    """The number of items, characters of texts or token ids, with which all sequences begin alike."""
    first, *others = sequences
    low, high = 0, min(map(len, sequences))
    while low < high:
        middle = (low + high + 1) // 2
        if all(other[:middle] == first[:middle] for other in others):
            low = middle
        else:
            high = middle - 1
    return low
