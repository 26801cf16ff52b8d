"""mlx-lm's caches of prompts: computed once, then copied into the batch for each of the prompt's completions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.cache import CacheList, make_prompt_cache

from mlx_dpo.utils.stop_flag import check_stop

PREFILL_CHUNK = 512  # tokens of each prompt that are run at a time, between two looks at the stop flag

LayerCaches = list[Any]  # mlx-lm's cache of each layer


class BatchSupport(IntEnum):
    """What a model can run side by side; each level includes those below it."""

    SEQUENCE = 0  # one sequence
    PROMPT = 1  # completions of one prompt, which are equally long at every step
    MIXED_LENGTHS = 2  # sequences padded on the left, whose prompts were run one at a time
    PADDED_PROMPTS = 3  # prompts padded on the right too


def prefill(model: nn.Module, prompts: Sequence[Sequence[int]], support: BatchSupport) -> LayerCaches:
    """Run all but the last token of each prompt.

    Args:
        model: the model.
        prompts: their token ids, each at least one; several prompts only with `PADDED_PROMPTS`.
        support: of the model.

    Returns:
        mlx-lm's batch caches with a row for each prompt; below `MIXED_LENGTHS` the prompt's own caches, which have one
        offset for all their rows.
    """
    tokens = [list(prompt[:-1]) for prompt in prompts]
    lengths = list(map(len, tokens))
    padding = [max(lengths) - length for length in lengths]
    caches = make_prompt_cache(model) if len(prompts) == 1 else _empty_batch(model, len(prompts))
    if any(padding):
        for cache in caches:
            cache.prepare(lengths=lengths, right_padding=padding)
    padded = mx.array([ids + [0] * count for ids, count in zip(tokens, padding, strict=True)], mx.int32)
    for start in range(0, max(lengths), PREFILL_CHUNK):
        check_stop()
        model(padded[:, start : start + PREFILL_CHUNK], cache=caches)
        mx.eval([cache.state for cache in caches])
    if any(padding):
        for cache in caches:
            cache.finalize()
    if len(prompts) == 1 and support >= BatchSupport.MIXED_LENGTHS:
        caches = [cache.merge([cache]) for cache in caches]
    mx.eval([cache.state for cache in caches])
    return caches


def _empty_batch(model: nn.Module, size: int) -> LayerCaches:
    by_prompt = [make_prompt_cache(model) for _ in range(size)]
    return [layer[0].merge(layer) for layer in map(list, zip(*by_prompt, strict=True))]


def select_rows(caches: LayerCaches, rows: Sequence[int]) -> LayerCaches:
    """Copy rows of a batch, which may repeat; the batch stays as it is."""
    copies = [_shallow_copy(cache) for cache in caches]
    keep_rows(copies, rows)
    return copies


def _shallow_copy(cache: Any) -> Any:
    """A cache that shares its arrays with the original, until `keep_rows` replaces them."""
    if isinstance(cache, CacheList):
        return CacheList(*map(_shallow_copy, cache.caches))
    return copy.copy(cache)


def keep_rows(caches: Sequence[Any], rows: Sequence[int]) -> None:
    """Keep these rows of a batch, in this order."""
    for cache in caches:
        if isinstance(cache, CacheList):
            keep_rows(cache.caches, rows)
        elif hasattr(cache, "filter"):
            cache.filter(list(rows))
        else:  # a prompt's own cache
            cache.state = tree_map(partial(_select, mx.array(list(rows))), cache.state)


def _select(rows: mx.array, value: Any) -> Any:
    return value[rows] if isinstance(value, mx.array) else value


def append_rows(caches: LayerCaches, joining: LayerCaches) -> None:
    """Append the rows of another batch, which must not be used afterwards."""
    for cache, other in zip(caches, joining, strict=True):
        cache.extend(other)
