"""How far two ways to compute the same may differ on this backend: by rounding, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import mlx.core as mx
import numpy as np

FLOAT32_TOLERANCE = 1e-5  # relative to the largest number, where float32 products are in float32
SMALLEST = 1e-30  # largest number of an array of zeros
ROUNDINGS = 16  # of the data type, that add up: a CPU sums the products of bfloat16 numbers in bfloat16
MAX_PRODUCT_ERROR = 1e-2  # of products in the reduced precision of any GPU; more is wrong


@cache
def product_error() -> float:
    """The relative error of a float32 matrix product: some GPUs multiply in fewer bits."""
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 128, 128)).astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.abs(np.array(mx.array(a) @ mx.array(b)) - exact).max() / np.abs(exact).max())


def tolerance(dtype: mx.Dtype = mx.float32) -> float:
    """The difference that rounding explains, relative to the largest number.

    Args:
        dtype: of the numbers.
    """
    if dtype != mx.float32:
        return ROUNDINGS * float(mx.finfo(dtype).eps)
    return FLOAT32_TOLERANCE + ROUNDINGS * min(product_error(), MAX_PRODUCT_ERROR)


def largest_difference(
    actual: Mapping[str, mx.array], expected: Mapping[str, mx.array], allowed: float, scale: float | None = None
) -> str | None:
    """Describe the largest difference of arrays.

    Args:
        actual: arrays by name.
        expected: what they should be.
        allowed: the difference that rounding explains, relative to the largest number of an array.
        scale: the largest number to use for all arrays; None for that of each expected array.

    Returns:
        The name and numbers of the array that differs most; None if none differs by more than is allowed.
    """
    worst, text = allowed, None
    for name, array in expected.items():
        numbers, exact = (np.array(values.astype(mx.float32)) for values in (actual[name], array))
        share = float(np.abs(numbers - exact).max() / (scale or max(np.abs(exact).max(), SMALLEST)))
        if not share <= worst:  # NaN too
            worst = share
            text = f"{name}: off by {share:.1e} of the largest value, where rounding explains {allowed:.1e}"
    return text
