"""Compare mlx's fused attention with attention in plain operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_dpo.forward.plain_attention import plain_attention
from mlx_dpo.forward.rounding import largest_difference, tolerance

MaskKind = Literal["no", "a causal", "a boolean", "an additive"]


@dataclass(frozen=True)
class AttentionCase:
    """A call of attention. Backends have a kernel for few queries and one for many, and several by head size.

    Attributes:
        mask: which kind of mask.
        length: queries.
        num_keys: keys and values.
        head_size: numbers in a query.
        dtype: of queries, keys and values.
        has_sinks: whether heads have attention sinks.
    """

    mask: MaskKind
    length: int
    num_keys: int
    head_size: int = 64
    dtype: mx.Dtype = mx.float32
    has_sinks: bool = False

    def __str__(self) -> str:
        mask, dtype = f"{self.mask} mask" + (" and sinks" if self.has_sinks else ""), str(self.dtype).rpartition(".")[2]
        return f"{mask}, {self.length} queries, {self.num_keys} keys, head size {self.head_size}, {dtype}"


CASES = (
    AttentionCase("a causal", 24, 24),
    AttentionCase("a causal", 9, 40, head_size=128),
    AttentionCase("a causal", 24, 24, has_sinks=True),
    AttentionCase("a boolean", 24, 40),
    AttentionCase("an additive", 24, 40),
    AttentionCase("no", 1, 33),
    AttentionCase("no", 24, 40, head_size=80),
    AttentionCase("no", 1, 1100, head_size=128),  # so many keys are cut into parts on Metal
    AttentionCase("a causal", 130, 260),
    AttentionCase("a causal", 24, 24, dtype=mx.bfloat16),
    AttentionCase("a boolean", 24, 40, head_size=128, dtype=mx.float16),
)
BATCH, HEADS, KEY_HEADS = 2, 4, 2  # grouped-query attention


def fused_attention_problem() -> str | None:
    """What differs in outputs or gradients, with numbers; None if nothing does."""
    for case in CASES:
        arrays, settings = _inputs(case)
        expected = attention_results(plain_attention, arrays, settings)
        actual = attention_results(mx.fast.scaled_dot_product_attention, arrays, settings)
        if difference := largest_difference(actual, expected, tolerance(case.dtype)):
            return f"{difference} ({case})"
    return None


def attention_results(attend: Any, arrays: list[mx.array], settings: dict[str, Any]) -> dict[str, mx.array]:
    """Outputs and gradients of attention, by name.

    Args:
        attend: attention with the arguments of `mx.fast.scaled_dot_product_attention`.
        arrays: q, k, v, and the gradient with respect to the output.
        settings: the other arguments.
    """
    *inputs, upstream_grad = arrays

    def output(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attend(q, k, v, **settings)

    (differentiated,), gradients = mx.vjp(output, inputs, [upstream_grad])
    results = {"the output": output(*inputs), "the output of a pass with gradients": differentiated}
    names = ("queries", "keys", "values")
    results |= {f"the gradient of {name}": array for name, array in zip(names, gradients, strict=True)}
    mx.eval(results)
    return results


def _inputs(case: AttentionCase) -> tuple[list[mx.array], dict[str, Any]]:
    generator = np.random.default_rng(case.length)

    def normal(*shape: int) -> mx.array:
        return mx.array(generator.standard_normal(shape).astype(np.float32)).astype(case.dtype)

    queries, keys = (BATCH, HEADS, case.length, case.head_size), (BATCH, KEY_HEADS, case.num_keys, case.head_size)
    arrays = [normal(*queries), normal(*keys), normal(*keys), normal(*queries)]
    is_own = np.eye(case.length, case.num_keys, case.num_keys - case.length, dtype=bool)
    allowed = is_own | (generator.random((BATCH, 1, case.length, case.num_keys)) < 0.6)
    masks: dict[MaskKind, Any] = {
        "no": None,
        "a causal": "causal",
        "a boolean": mx.array(allowed),
        "an additive": mx.where(mx.array(allowed), normal(1, HEADS, case.length, case.num_keys), -1e4),
    }
    sinks = {"sinks": normal(HEADS)} if case.has_sinks else {}
    return arrays, {"scale": case.head_size**-0.5, "mask": masks[case.mask], **sinks}
