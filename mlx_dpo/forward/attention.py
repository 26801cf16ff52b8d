"""Attention, a block of queries at a time: its scores take memory by the prompt's length, not by its square.

Under a causal mask a block also leaves out the keys that come after it, which the whole would compute and throw away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

QUERY_BLOCK = 128  # of a block

Mask = mx.array | str | None
Attend = Callable[..., mx.array]


@contextmanager
def blockwise_attention(checkpoint_scores: bool = False) -> Iterator[None]:
    """Within, mlx's attention, which every model calls, goes by blocks.

    Args:
        recompute: whether a block's scores are computed again in the backward pass, instead of being kept.
    """
    whole = mx.fast.scaled_dot_product_attention
    mx.fast.scaled_dot_product_attention = _by_blocks(whole, checkpoint_scores)
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = whole


def _by_blocks(whole: Attend, recompute: bool) -> Attend:
    def attend(q: mx.array, k: mx.array, v: mx.array, *, mask: Mask = None, **settings: Any) -> mx.array:
        length, before = q.shape[2], k.shape[2] - q.shape[2]
        blocks = []
        for start in range(0, length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, length)
            keys = slice(0, before + stop if isinstance(mask, str) else None)
            block = {"q": q[:, :, start:stop], "k": k[:, :, keys], "v": v[:, :, keys]}
            part = {**settings, **block, "mask": _rows(mask, start, stop)}
            blocks.append(_recomputed(whole, part) if recompute else whole(**part))
        return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)

    return attend


def _rows(mask: Mask, start: int, stop: int) -> Mask:
    """What some queries may look at."""
    return mask[..., start:stop, :] if isinstance(mask, mx.array) and mask.shape[-2] > 1 else mask


def _recomputed(whole: Attend, part: dict[str, Any]) -> mx.array:
    """Floating arrays are inputs, for their gradient, a mask that is a bias among them; the rest is closed over."""
    names = [n for n, v in part.items() if isinstance(v, mx.array) and mx.issubdtype(v.dtype, mx.floating)]

    def attend(*inputs: mx.array) -> mx.array:
        return whole(**{**part, **dict(zip(names, inputs, strict=True))})

    def backward(inputs: tuple[mx.array, ...], gradient: mx.array, outputs: mx.array) -> Any:
        _, gradients = mx.vjp(attend, list(inputs), [gradient])
        return mx.depends(gradients, gradients)  # all at once, or scores wait for the last to be asked for

    custom: Any = mx.custom_function(attend)  # its stub says object
    custom.vjp(backward)
    return custom(*(part[n] for n in names))
