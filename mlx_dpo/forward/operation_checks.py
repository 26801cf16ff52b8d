"""Compare operations that every model is made of with plain ones: products, normalization, rotary embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import mlx.core as mx
import numpy as np

from mlx_dpo.forward.rounding import MAX_PRODUCT_ERROR, largest_difference, product_error, tolerance

LENGTHS = (1, 24)  # rows of inputs; backends have a kernel for few rows and one for many
WIDTH = 128
GROUP_SIZE = 64  # of quantized weights
QUANTIZED_BITS = (4, 8)
DTYPES = (mx.float32, mx.bfloat16)

Operation = Callable[[mx.array], mx.array]


def product_problem() -> str | None:
    """What is wrong with matrix products, compared with numpy's; None if nothing is."""
    if not product_error() <= MAX_PRODUCT_ERROR:
        return f"a float32 product differs from numpy's by {product_error():.1e} of its largest value"
    weight = _normal(WIDTH, WIDTH)
    x, upstream_grad = _normal(LENGTHS[1], WIDTH), 1 + _normal(LENGTHS[1], WIDTH)
    _, (gradient,) = mx.vjp(lambda x: x @ weight.T, [x], [upstream_grad])
    expected = mx.array(np.array(upstream_grad) @ np.array(weight))
    difference = largest_difference({"the gradient": gradient}, {"the gradient": expected}, tolerance())
    return difference or _compare(lambda x: x @ weight.T.astype(x.dtype), lambda x: x @ weight.T)


def quantized_product_problem() -> str | None:
    """What differs between quantized products and products with the same weights, unpacked; None if nothing does."""
    problems = (_quantized_problem(bits, dtype) for bits in QUANTIZED_BITS for dtype in DTYPES)
    return next(filter(None, problems), None)


def _quantized_problem(bits: int, dtype: mx.Dtype) -> str | None:
    weight, scales, biases = mx.quantize(_normal(WIDTH, WIDTH).astype(dtype), GROUP_SIZE, bits)
    unpacked = mx.dequantize(weight, scales, biases, GROUP_SIZE, bits).astype(mx.float32)

    def quantized(x: mx.array) -> mx.array:
        return mx.quantized_matmul(x, weight, scales, biases, True, GROUP_SIZE, bits)

    problem = _compare(quantized, lambda x: x @ unpacked.T, (dtype,))
    return problem and f"{problem}, {bits} bits"


def normalization_problem() -> str | None:
    """What differs between mlx's fused RMS normalization and its formula; None if nothing does."""
    weight = 1 + 0.1 * _normal(WIDTH)

    def plain(x: mx.array) -> mx.array:
        return weight * x * mx.rsqrt(mx.square(x).mean(axis=-1, keepdims=True) + 1e-5)

    return _compare(lambda x: mx.fast.rms_norm(x, weight.astype(x.dtype), 1e-5), plain)


def rotary_embedding_problem() -> str | None:
    """What differs between mlx's fused rotary position embedding and its formula; None if nothing does."""
    start, half = 7, WIDTH // 2

    def plain(x: mx.array) -> mx.array:
        positions = mx.arange(start, start + x.shape[-2], dtype=mx.float32)
        angles = positions[:, None] * mx.power(10000.0, -mx.arange(half, dtype=mx.float32) / half)
        first, second = x[..., :half], x[..., half:]
        rotated = [first * mx.cos(angles) - second * mx.sin(angles), first * mx.sin(angles) + second * mx.cos(angles)]
        return mx.concatenate(rotated, axis=-1)

    def rope(x: mx.array) -> mx.array:
        return mx.fast.rope(x, WIDTH, traditional=False, base=10000.0, scale=1.0, offset=start)

    return _compare(rope, plain)


def _normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32))


def _compare(operation: Operation, plain: Operation, dtypes: Sequence[mx.Dtype] = DTYPES) -> str | None:
    """Compare outputs and gradients for inputs of some data types with those of a plain operation in float32."""
    names = ("the output", "the output of a pass with gradients", "the gradient")
    for dtype, length in product(dtypes, LENGTHS):
        x, upstream_grad = _normal(1, length, WIDTH).astype(dtype), _normal(1, 1, length, WIDTH)[0].astype(dtype)
        (expected,), (expected_grad,) = mx.vjp(plain, [x.astype(mx.float32)], [upstream_grad.astype(mx.float32)])
        (output,), (gradient,) = mx.vjp(operation, [x], [upstream_grad])
        difference = largest_difference(
            dict(zip(names, (operation(x), output, gradient), strict=True)),
            dict(zip(names, (expected, expected, expected_grad), strict=True)),
            tolerance(dtype),
        )
        if difference:
            return f"{difference} ({length} rows, {str(dtype).rpartition('.')[2]})"
    return None
