"""Forward pass with a shared prompt: the prompt once, then its completions on its keys, values and states.

The last prompt token is the first input of each completion. So every input of the second stage has a completion token
as its target, the first stage never reaches the head, and of its last layer only keys and values are computed.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_dpo.data.collation import SharedPromptBatch
from mlx_dpo.forward.head import HeadSplit
from mlx_dpo.forward.prefix_cache import StageLayout, make_prefix_caches


def completion_hidden_states(split: HeadSplit, batch: SharedPromptBatch) -> list[mx.array]:
    """Compute the hidden states of each group of completions.

    Args:
        split: the model.
        batch: prompts and the completions that continue them.

    Returns:
        For each group [completions, tokens, hidden], aligned with its targets.

    Raises:
        UnsupportedCacheError: the model uses a cache that has no differentiable replacement.
    """
    padding, width = batch.left_padding, batch.prompts.shape[1]
    padded = bool(padding.any())
    key_mask = mx.array(np.arange(width)[None] >= padding[:, None]) if padded else None
    prompts = StageLayout(mx.array(-padding) if padded else 0, num_prefix_keys=0, key_mask=key_mask)
    caches = make_prefix_caches(split.model, prompts, padding)
    if width:
        split.model(mx.array(batch.prompts), cache=caches)  # fills the caches
    hidden_states = []
    for group in batch.completion_groups:
        indices = group.prompt_indices
        start = mx.array(width - padding[indices]) if padded else width
        mask = None if key_mask is None else key_mask[mx.array(indices)]
        layout = StageLayout(start, num_prefix_keys=width, key_mask=mask)
        forks = [cache.fork(layout, indices) for cache in caches]
        hidden_states.append(split.hidden_states(mx.array(group.inputs), forks))
    return hidden_states
