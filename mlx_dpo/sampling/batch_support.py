"""Find out what a model can run side by side, by running a few tokens and comparing logits.

Some models of mlx-lm have caches that can't be batched. Some run sequences of different lengths side by side without an
error but with wrong numbers, as their layers take no mask or count positions from the padding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.sampling.prompt_caches import BatchSupport, LayerCaches, append_rows, prefill, select_rows

# What model code raises where it is not written for a batch. An error of the machine is a RuntimeError.
_UNSUITABLE = (ValueError, TypeError, AttributeError, LookupError, NotImplementedError)

_PROMPTS = ((3, 5, 4, 6, 2), (4, 2))
_CONTINUATION = (5, 3)  # tokens that follow in every sequence
_TOLERANCE = {mx.float32: 1e-3}  # differences that rounding explains, relative to the logits' standard deviation
_HALF_PRECISION_TOLERANCE = 5e-2

_known: dict[int, tuple[weakref.ref[nn.Module], BatchSupport]] = {}  # by id of the model


def batch_support(model: nn.Module) -> BatchSupport:
    """What a model can run side by side; tried once for each model in memory.

    Args:
        model: the model, in evaluation mode.
    """
    known = _known.get(id(model))
    if known is None or known[0]() is not model:
        known = _known[id(model)] = weakref.ref(model), _try_support(model)
    return known[1]


def _try_support(model: nn.Module) -> BatchSupport:
    alone = [_decode(model, prefill(model, [ids], BatchSupport.SEQUENCE), [ids])[:, 0] for ids in _PROMPTS]
    layouts: dict[BatchSupport, tuple[tuple[int, ...], Callable[[], LayerCaches]]] = {
        BatchSupport.PADDED_PROMPTS: ((0, 1), lambda: prefill(model, _PROMPTS, BatchSupport.PADDED_PROMPTS)),
        BatchSupport.MIXED_LENGTHS: ((0, 1), lambda: _mixed(model)),
        BatchSupport.PROMPT: ((0, 0, 0), lambda: _repeated(model)),
    }
    for support, (rows, make_caches) in layouts.items():
        try:
            together = _decode(model, make_caches(), [_PROMPTS[row] for row in rows])
        except _UNSUITABLE:
            continue
        if all(_agree(together[:, i], alone[row]) for i, row in enumerate(rows)):
            return support
    return BatchSupport.SEQUENCE


def _mixed(model: nn.Module) -> LayerCaches:
    caches, joining = (prefill(model, [ids], BatchSupport.MIXED_LENGTHS) for ids in _PROMPTS)
    append_rows(caches, joining)
    return caches


def _repeated(model: nn.Module) -> LayerCaches:
    return select_rows(prefill(model, _PROMPTS[:1], BatchSupport.PROMPT), [0, 0, 0])


def _decode(model: nn.Module, caches: LayerCaches, prompts: list[tuple[int, ...]]) -> mx.array:
    """Logits after the prompts and each token of the continuation, [steps, rows, vocabulary]."""
    steps = [[ids[-1] for ids in prompts], *([token] * len(prompts) for token in _CONTINUATION)]
    logits = mx.stack([model(mx.array(tokens)[:, None], cache=caches)[:, -1] for tokens in steps])
    mx.eval(logits)
    return logits


def _agree(logits: mx.array, expected: mx.array) -> bool:
    """Whether logits, [steps, vocabulary], are the same up to rounding in most steps.

    In a step rounding may choose other experts, which changes all logits; wrong masks and positions change every step.
    """
    tolerance = _TOLERANCE.get(expected.dtype, _HALF_PRECISION_TOLERANCE)
    difference = mx.sqrt(mx.square((logits - expected).astype(mx.float32)).mean(axis=-1))
    scale = mx.std(expected.astype(mx.float32), axis=-1)
    return bool(np.median(np.array(difference <= tolerance * scale)) == 1)
