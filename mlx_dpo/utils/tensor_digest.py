"""A digest of one tensor, computed where the tensor is."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

CHUNK_BYTES = 1 << 20  # read at a time
MULTIPLIER = 0x1E3779B97F4A7C15  # any large odd number


def tensor_digest(tensor: mx.array) -> str:
    """The dtype, the shape and a checksum of the values, as one string."""
    return f"{tensor.dtype} {tensor.shape} {_checksum(tensor):x}"


def _checksum(tensor: mx.array) -> int:
    """Of the bytes and their positions, modulo 2**64."""
    data, total = tensor.reshape(-1).view(mx.uint8), 0
    for start in range(0, data.size, CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        words = mx.pad(chunk, (0, -chunk.size % 4)).view(mx.uint32).astype(mx.uint64)
        factors = mx.arange(1, words.size + 1).astype(mx.uint64) * mx.array(MULTIPLIER, mx.uint64)
        chunk_sum: Any = ((words + 1) * (factors | mx.array(1, mx.uint64))).sum().item()
        total = (31 * total + chunk_sum) % 2**64
    return total
