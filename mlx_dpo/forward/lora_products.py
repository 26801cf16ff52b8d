"""Linear layers with a low-rank adapter: mlx-lm's, with less work over their full width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.tuner.lora import LoRALinear


@contextmanager
def single_product_lora() -> Iterator[None]:
    """Compute W x + s B (A x) as W x + B (s A x) within the context.

    The scale is applied where there are only `rank` numbers, and the sum is part of the product.
    """
    layer: Any = LoRALinear
    plain = layer.__call__
    layer.__call__ = _in_one_product
    try:
        yield
    finally:
        layer.__call__ = plain


def _in_one_product(self: LoRALinear, x: mx.array) -> mx.array:
    y = self.linear(x)
    low = self.scale * (self.dropout(x) @ self.lora_a)
    if low.dtype == y.dtype:
        return mx.addmm(y, low, self.lora_b)
    return y + (low @ self.lora_b).astype(y.dtype)
