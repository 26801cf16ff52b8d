"""A digest of one tensor, taken in chunks so that the tensor need not be in memory twice."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

_CHUNK_BYTES = 1 << 20
_MULTIPLIER = 0x1E3779B97F4A7C15  # any large odd number


def tensor_digest(tensor: mx.array) -> str:
    """The type, the shape and a checksum of the contents of a tensor, as text."""
    return f"{tensor.dtype} {tensor.shape} {_checksum(tensor):x}"


def _checksum(tensor: mx.array) -> int:
    """A checksum modulo 2**64 of the bytes and their positions."""
    data, checksum = tensor.reshape(-1).view(mx.uint8), 0
    for start in range(0, data.size, _CHUNK_BYTES):
        chunk = data[start : start + _CHUNK_BYTES]
        words = mx.pad(chunk, (0, -chunk.size % 4)).view(mx.uint32).astype(mx.uint64)
        factors = mx.arange(1, words.size + 1).astype(mx.uint64) * mx.array(_MULTIPLIER, mx.uint64)
        total: Any = ((words + 1) * (factors | mx.array(1, mx.uint64))).sum().item()
        checksum = (31 * checksum + total) % 2**64
    return checksum
