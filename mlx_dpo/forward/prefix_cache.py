"""Differentiable replacements for mlx-lm's caches: several completions share a prompt's keys, values and states.

mlx-lm's own caches write into buffers in place; these only concatenate, so what a layer stores in them stays part of
the graph and gradients flow through the prompt.

A new kind of cache: add a class that derives from `PrefixCache`, and a case in `_replacement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache, make_prompt_cache


class UnsupportedCacheError(Exception):
    """A kind of cache without a differentiable replacement."""


@dataclass(frozen=True)
class StageLayout:
    """Positions and padding of the tokens of one stage: the forward pass of prompts, or that of their completions.

    Attributes:
        start_position: [sequences], position of the first input, negative if the sequence is padded on the left; an int
            if it is equal for all and nothing is padded.
        num_prefix_keys: number of keys before those of this stage.
        key_mask: [sequences, keys], false if one of the first keys is padding; None if none is.
    """

    start_position: mx.array | int
    num_prefix_keys: int
    key_mask: mx.array | None = None

    def mask(self, length: int, window: int | None, as_array: bool) -> mx.array | str | None:
        """Return the attention mask of this stage.

        Args:
            length: number of inputs.
            window: size of sliding-window attention; None for full attention.
            as_array: whether the model needs an array.

        Returns:
            [sequences, 1, inputs, keys] booleans, "causal" if that is equivalent, or None if nothing is masked.
        """
        total = self.num_prefix_keys + length
        if self.key_mask is None and not as_array and (window is None or total <= window):
            return None if length == 1 else "causal"
        query = mx.arange(self.num_prefix_keys, total)[:, None]
        key = mx.arange(total)[None]
        allowed = query >= key
        if window is not None:
            allowed = allowed & (query - key < window)
        if self.key_mask is None:
            return allowed
        real = mx.pad(self.key_mask, [(0, 0), (0, total - self.key_mask.shape[1])], constant_values=True)
        # a padded input attends to itself: a fully masked row would be NaN
        return (allowed[None] & (real[:, None] | (query == key)[None]))[:, None]


class PrefixCache:
    """Base class of the replacements. A subclass also has the methods of the mlx-lm cache that it replaces.

    Attributes:
        arrays: what the layer has stored. Gradient checkpointing reads it before a layer's call, and assigns to it
            in the recomputation, so it must be assignable.
    """

    arrays: list[mx.array | None]

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> Any:
        """Return a copy of this cache for completions, repeating each prompt's arrays.

        Args:
            layout: layout of the completions' stage; states that do not depend on positions ignore it.
            prompt_indices: the prompt that each completion continues.
        """
        raise NotImplementedError


class PrefixKVCache(PrefixCache):
    """Replaces KVCache and RotatingKVCache; its arrays are keys and values, [sequences, heads, keys, size]."""

    def __init__(
        self, layout: StageLayout, window: int | None = None, arrays: Sequence[mx.array | None] = (None, None)
    ) -> None:
        self.layout, self.window, self.arrays = layout, window, list(arrays)

    @property
    def offset(self) -> mx.array | int:
        """Position of the first input."""
        return self.layout.start_position

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values, and return all to attend to."""
        before_keys, before_values = self.arrays
        if before_keys is not None and before_values is not None:
            keys = mx.concatenate([before_keys, keys], axis=2)
            values = mx.concatenate([before_values, values], axis=2)
        self.arrays = [keys, values]
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The attention mask; see `StageLayout.mask`."""
        return self.layout.mask(length, window_size or self.window, return_array)

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> PrefixKVCache:
        """The cache of the next stage; see `PrefixCache.fork`."""
        return type(self)(layout, self.window, _select(self.arrays, prompt_indices))

    def size(self) -> int:
        """Number of keys before this stage."""
        return self.layout.num_prefix_keys

    # Some layers also read these attributes, or assign to them.

    def keys_and_values(self) -> tuple[mx.array | None, mx.array | None]:
        """Keys and values, for layers that share those of another layer."""
        keys, values = self.arrays
        return keys, values

    @property
    def keys(self) -> mx.array | None:
        """[sequences, heads, keys, size]; None before the first update."""
        return self.arrays[0]

    @keys.setter
    def keys(self, keys: mx.array) -> None:
        self.arrays[0] = keys

    @property
    def values(self) -> mx.array | None:
        """[sequences, heads, keys, size]; None before the first update."""
        return self.arrays[1]

    @values.setter
    def values(self, values: mx.array) -> None:
        self.arrays[1] = values


class PrefixChunkedCache(PrefixKVCache):
    """Replaces ChunkedKVCache. Nothing is dropped: the model's own mask separates the chunks."""

    start_position = 0

    def maybe_trim_front(self) -> None:
        """Do nothing: all keys are kept."""


class PrefixStateCache(PrefixCache, ArraysCache):
    """Replaces ArraysCache; its entries are reassigned and never modified in place."""

    @property
    def arrays(self) -> list[mx.array | None]:
        """The states of a layer."""
        return self.cache

    @arrays.setter
    def arrays(self, arrays: list[mx.array | None]) -> None:
        self.cache = list(arrays)

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> PrefixStateCache:
        """The cache of the next stage; see `PrefixCache.fork`."""
        forked = PrefixStateCache(len(self.cache))
        forked.cache = _select(self.cache, prompt_indices)
        return forked


class PrefixCacheList(PrefixCache, CacheList):
    """Replaces CacheList by a list of replacements."""

    @property
    def arrays(self) -> list[mx.array | None]:
        """The arrays of all caches, concatenated."""
        return [array for cache in self.caches for array in cache.arrays]

    @arrays.setter
    def arrays(self, arrays: list[mx.array | None]) -> None:
        rest = list(arrays)
        for cache in self.caches:
            count = len(cache.arrays)
            cache.arrays, rest = rest[:count], rest[count:]

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> PrefixCacheList:
        """The cache of the next stage; see `PrefixCache.fork`."""
        return PrefixCacheList(*(cache.fork(layout, prompt_indices) for cache in self.caches))


def _select(arrays: Sequence[mx.array | None], indices: Sequence[int]) -> list[mx.array | None]:
    """array[indices] of every array. By slices, whose gradient is a sum: that of indexing is a scatter."""
    return [None if array is None else mx.concatenate([array[i : i + 1] for i in indices]) for array in arrays]


def make_prefix_caches(model: nn.Module, layout: StageLayout, padding: np.ndarray) -> list[PrefixCache]:
    """Create a replacement for each cache of a model.

    Args:
        model: the model.
        layout: layout of the prompts.
        padding: [prompts], number of padding tokens on the left.

    Raises:
        UnsupportedCacheError: a kind of cache has no replacement.
    """
    return [_replacement(cache, layout, padding) for cache in make_prompt_cache(model)]


def _replacement(cache: Any, layout: StageLayout, padding: np.ndarray) -> PrefixCache:
    if type(cache) is KVCache:
        return PrefixKVCache(layout)
    if type(cache) is ChunkedKVCache:
        return PrefixChunkedCache(layout)
    if type(cache) is RotatingKVCache and cache.keep == 0:
        return PrefixKVCache(layout, cache.max_size)
    if type(cache) is ArraysCache:
        return PrefixStateCache(len(cache.cache), padding.tolist() if padding.any() else None)
    if type(cache) is CacheList:
        return PrefixCacheList(*(_replacement(inner, layout, padding) for inner in cache.caches))
    raise UnsupportedCacheError(type(cache).__name__)
