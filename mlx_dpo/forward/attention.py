"""Blockwise attention: a block of queries at a time, so that scores take memory linear in the prompt's length.

Under a causal mask, a block also skips the keys after it, which full attention computes and masks out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import mlx.core as mx

from mlx_dpo.forward.backend_check import FUSED_ATTENTION, has_problem
from mlx_dpo.forward.plain_attention import plain_attention

QUERY_BLOCK = 128  # queries in a block

Mask = mx.array | str | None
Attend = Callable[..., mx.array]


@contextmanager
def replaced_attention(attend: Attend) -> Iterator[None]:
    """Make models use other attention inside a `with` block.

    Args:
        attend: takes the arguments of `mx.fast.scaled_dot_product_attention`.
    """
    before = mx.fast.scaled_dot_product_attention
    mx.fast.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = before


@contextmanager
def checked_attention() -> Iterator[None]:
    """Make models use attention in plain operations inside a `with` block, if mlx's own is wrong on this machine."""
    with replaced_attention(plain_attention) if has_problem(FUSED_ATTENTION) else nullcontext():
        yield


@contextmanager
def blockwise_attention(checkpoint_scores: bool = False) -> Iterator[None]:
    """Make mlx's attention, which every model calls, work in blocks inside a `with` block.

    Args:
        checkpoint_scores: whether to recompute a block's scores in the backward pass instead of keeping them.
    """
    with replaced_attention(_in_blocks(mx.fast.scaled_dot_product_attention, checkpoint_scores)):
        yield


def _in_blocks(full: Attend, checkpoint_scores: bool) -> Attend:
    def attend(q: mx.array, k: mx.array, v: mx.array, *, mask: Mask = None, **settings: Any) -> mx.array:
        length, before = q.shape[2], k.shape[2] - q.shape[2]
        blocks = []
        for start in range(0, length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, length)
            keys = slice(0, before + stop if isinstance(mask, str) else None)
            block = {"q": q[:, :, start:stop], "k": k[:, :, keys], "v": v[:, :, keys]}
            part = {**settings, **block, "mask": _mask_rows(mask, start, stop)}
            blocks.append(_checkpointed(full, part) if checkpoint_scores else full(**part))
        return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)

    return attend


def _mask_rows(mask: Mask, start: int, stop: int) -> Mask:
    """The mask of some queries."""
    return mask[..., start:stop, :] if isinstance(mask, mx.array) and mask.shape[-2] > 1 else mask


def _checkpointed(full: Attend, part: dict[str, Any]) -> mx.array:
    """Attention that recomputes its scores. Floating arrays, a bias mask included, are inputs, for their gradients."""
    names = [n for n, v in part.items() if isinstance(v, mx.array) and mx.issubdtype(v.dtype, mx.floating)]

    def attend(*inputs: mx.array) -> mx.array:
        return full(**{**part, **dict(zip(names, inputs, strict=True))})

    def backward(inputs: tuple[mx.array, ...], gradient: mx.array, outputs: mx.array) -> Any:
        _, gradients = mx.vjp(attend, list(inputs), [gradient])
        return mx.depends(gradients, gradients)  # together: the scores are freed

    custom: Any = mx.custom_function(attend)  # its stub says object
    custom.vjp(backward)
    return custom(*(part[n] for n in names))
