"""The prompt once, its completions on top of its keys, values and states.

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
    """Hidden rows of each group of completions, [completions, tokens, hidden], in step with its targets.

    Raises `Unshareable` where the model asks for a cache that no stand-in exists for.
    """
    padding, width = batch.left_padding, batch.prompts.shape[1]
    padded = bool(padding.any())
    real = mx.array(np.arange(width)[None] >= padding[:, None]) if padded else None
    prompts = StageLayout(mx.array(-padding) if padded else 0, num_prefix_keys=0, key_mask=real)
    caches = make_prefix_caches(split.model, prompts, padding)
    if width:
        split.model(mx.array(batch.prompts), cache=caches)  # for what it leaves in the caches
    rows = []
    for group in batch.completion_groups:
        of = group.prompt_indices
        start = mx.array(width - padding[of]) if padded else width
        layout = StageLayout(start, num_prefix_keys=width, key_mask=None if real is None else real[mx.array(of)])
        rows.append(split.hidden_states(mx.array(group.inputs), [cache.fork(layout, of) for cache in caches]))
    return rows
