"""Stand-ins for mlx-lm's caches that hand a prompt's keys, values and states to several completions, gradient and all.

mlx-lm's own caches write into buffers in place; these only concatenate, and what a layer leaves in them stays part of
the computation that is differentiated.
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
    """A cache of a kind that no stand-in exists for."""


@dataclass(frozen=True)
class StageLayout:
    """Where the tokens of one stage stand.

    Attributes:
        start: [sequences], position of the first input, negative where the sequence is padded on the left; an int where
            it is the same for all and nothing is padded.
        before: how many keys stand before this stage's.
        real: [sequences, keys], true where a key is a token's, of the first keys; the rest are. None where all are.
    """

    start_position: mx.array | int
    num_prefix_keys: int
    key_mask: mx.array | None = None

    def mask(self, length: int, window: int | None, as_array: bool) -> mx.array | str | None:
        """What this stage's inputs may look at: [sequences, 1, inputs, keys], or "causal" where that says it."""
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
        # a padded input keeps itself: a row with nothing to look at would be NaN
        return (allowed[None] & (real[:, None] | (query == key)[None]))[:, None]


class PrefixCache:
    """What stand-ins share: the arrays that a layer finds in a cache and leaves in it, and copies for completions."""

    arrays: list[mx.array | None]

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> Any:
        """A cache for the completions, `of` being the prompt that each continues."""
        raise NotImplementedError


class PrefixKVCache(PrefixCache):
    """Stands for a KVCache or a RotatingKVCache; its arrays are keys and values, [sequences, heads, keys, size]."""

    def __init__(
        self, layout: StageLayout, window: int | None = None, arrays: Sequence[mx.array | None] = (None, None)
    ) -> None:
        self.layout, self.window, self.arrays = layout, window, list(arrays)

    @property
    def offset(self) -> mx.array | int:
        """Position of the first input."""
        return self.layout.start_position

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values to attend to: those before, and these."""
        before_keys, before_values = self.arrays
        if before_keys is not None and before_values is not None:
            keys = mx.concatenate([before_keys, keys], axis=2)
            values = mx.concatenate([before_values, values], axis=2)
        self.arrays = [keys, values]
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """See `Layout.mask`."""
        return self.layout.mask(length, window_size or self.window, return_array)

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> PrefixKVCache:
        return type(self)(layout, self.window, _rows(self.arrays, prompt_indices))

    def size(self) -> int:
        """Keys before this stage."""
        return self.layout.num_prefix_keys

    # What some layers read from a cache, or put there, beside updating it.

    def keys_and_values(self) -> tuple[mx.array | None, mx.array | None]:
        """Those that layers sharing this one's keys and values attend to."""
        keys, values = self.arrays
        return keys, values

    @property
    def keys(self) -> mx.array | None:
        """[sequences, heads, keys, size], once there are any."""
        return self.arrays[0]

    @keys.setter
    def keys(self, keys: mx.array) -> None:
        self.arrays[0] = keys

    @property
    def values(self) -> mx.array | None:
        """[sequences, heads, keys, size], once there are any."""
        return self.arrays[1]

    @values.setter
    def values(self, values: mx.array) -> None:
        self.arrays[1] = values


class PrefixChunkedCache(PrefixKVCache):
    """Stands for a ChunkedKVCache: nothing is dropped, since the model's own mask keeps each chunk to itself."""

    start_position = 0

    def maybe_trim_front(self) -> None:
        """Keep what is there."""


class PrefixStateCache(PrefixCache, ArraysCache):
    """mlx-lm's ArraysCache, whose entries are replaced and never written into."""

    @property
    def arrays(self) -> list[mx.array | None]:
        """The states of a layer."""
        return self.cache

    @arrays.setter
    def arrays(self, arrays: list[mx.array | None]) -> None:
        self.cache = list(arrays)

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> PrefixStateCache:
        forked = PrefixStateCache(len(self.cache))
        forked.cache = _rows(self.cache, prompt_indices)
        return forked


class PrefixCacheList(PrefixCache, CacheList):
    """mlx-lm's CacheList, of stand-ins."""

    @property
    def arrays(self) -> list[mx.array | None]:
        """All of its caches' arrays, one after the other."""
        return [array for cache in self.caches for array in cache.arrays]

    @arrays.setter
    def arrays(self, arrays: list[mx.array | None]) -> None:
        rest = list(arrays)
        for cache in self.caches:
            count = len(cache.arrays)
            cache.arrays, rest = rest[:count], rest[count:]

    def fork(self, layout: StageLayout, prompt_indices: Sequence[int]) -> PrefixCacheList:
        return PrefixCacheList(*(cache.fork(layout, prompt_indices) for cache in self.caches))


def _rows(arrays: Sequence[mx.array | None], of: Sequence[int]) -> list[mx.array | None]:
    """array[of] of each; from slices, whose gradient is a sum, where indexing has a scatter."""
    return [None if a is None else mx.concatenate([a[i : i + 1] for i in of]) for a in arrays]


def make_prefix_caches(model: nn.Module, layout: StageLayout, padding: np.ndarray) -> list[PrefixCache]:
    """A stand-in for each cache the model asks for. Raises `Unshareable`."""
    return [_stand_in(cache, layout, padding) for cache in make_prompt_cache(model)]


def _stand_in(cache: Any, layout: StageLayout, padding: np.ndarray) -> PrefixCache:
    if type(cache) is KVCache:
        return PrefixKVCache(layout)
    if type(cache) is ChunkedKVCache:
        return PrefixChunkedCache(layout)
    if type(cache) is RotatingKVCache and cache.keep == 0:
        return PrefixKVCache(layout, cache.max_size)
    if type(cache) is ArraysCache:
        return PrefixStateCache(len(cache.cache), padding.tolist() if padding.any() else None)
    if type(cache) is CacheList:
        return PrefixCacheList(*(_stand_in(one, layout, padding) for one in cache.caches))
    raise UnsupportedCacheError(type(cache).__name__)
