"""Memory of sampling beside the weights, from the caches that a model makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import BatchKVCache, CacheList, make_prompt_cache

from mlx_dpo.forward.device import usable_memory

LOGIT_COPIES = 2  # float32 copies of a step's logits: the model's own, and what tokens are sampled from
SHARE_OF_FREE_MEMORY = 0.5  # the rest is for activations, an optimizer's state, and estimates that are too low
STATE_COPIES = 3  # temporary ones of a recurrent layer's state in its step


def sampling_bytes(model: nn.Module, prompt_tokens: int, max_tokens: int, sequences: int) -> int:
    """Estimate the peak memory of `sample_completions` beside the weights, with prompts and completions of full length.

    That is the caches of all sequences and of a prompt that waits, temporary copies of a layer's while it changes, and
    a step's logits. Activations of prompts are not in it: up to 2,048 tokens of prompts are run at a time.

    Args:
        model: the model; nothing is run.
        prompt_tokens: of the longest prompt.
        max_tokens: of the longest completion.
        sequences: side by side.

    Returns:
        Bytes.
    """
    per_sequence, waiting = _bytes_by_kind(model, prompt_tokens, max_tokens)
    return sequences * per_sequence + waiting


def fitting_batch_size(model: nn.Module, prompt_tokens: int, max_tokens: int, largest: int) -> int:
    """The number of sequences, at least one, that fit side by side in half of the memory beside the weights.

    It depends on the model, the lengths and the machine alone, so that a resumed run takes the same.

    Args:
        model: the model; nothing is run.
        prompt_tokens: of the longest prompt.
        max_tokens: of the longest completion.
        largest: most sequences.
    """
    weights = sum(tensor.nbytes for _, tensor in tree_flatten(model.parameters()))
    per_sequence, waiting = _bytes_by_kind(model, prompt_tokens, max_tokens)
    return max(1, min(largest, int((SHARE_OF_FREE_MEMORY * (usable_memory() - weights) - waiting) // per_sequence)))


def _bytes_by_kind(model: nn.Module, prompt_tokens: int, max_tokens: int) -> tuple[int, int]:
    """Bytes of a sequence, and those that do not depend on the number of sequences."""
    caches = make_prompt_cache(model)
    logits = model(mx.zeros((1, 2), mx.int32), cache=caches)  # a graph, of which only shapes are read
    layers, temporary, waiting = [0], 0, 0
    for cache in _leaves(caches):
        layers.append(_sequence_bytes(cache, prompt_tokens, max_tokens))
        temporary = max(temporary, layers[-1] * (STATE_COPIES if _keys(cache) is None else 1))
        waiting += _sequence_bytes(cache, prompt_tokens, 0)
    return sum(layers) + temporary + LOGIT_COPIES * mx.float32.size * logits.shape[-1], waiting


def _leaves(caches: Sequence[Any]) -> Iterator[Any]:
    """The caches, with those inside of lists instead of the lists."""
    for cache in caches:
        if isinstance(cache, CacheList):
            yield from _leaves(cache.caches)
        else:
            yield cache


def _sequence_bytes(cache: Any, prompt_tokens: int, max_tokens: int) -> int:
    """Bytes of a layer's cache of one sequence.

    Args:
        cache: of the layer, for one sequence, with a few tokens.
        prompt_tokens: of the prompt.
        max_tokens: after it, for which the cache grows in steps of 256.
    """
    keys = _keys(cache)
    if keys is None:  # a state that does not grow
        return int(cache.nbytes)
    allocated = keys.shape[-2]
    steps = -(-max_tokens // BatchKVCache.step)
    positions = prompt_tokens - 1 + steps * BatchKVCache.step
    limit = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None) or positions
    return int(cache.nbytes // allocated * min(positions, limit))


def _keys(cache: Any) -> mx.array | None:
    """The keys in a cache, or a part of quantized ones; None for a recurrent state."""
    keys = getattr(cache, "keys", None)
    return keys[0] if isinstance(keys, (tuple, list)) else keys
