"""The prompt once, its completions on top of its keys, values and states.

The last prompt token is the first input of each completion. So every input of the second stage has a completion token
as its target, the first stage never reaches the head, and of its last layer only keys and values are computed.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_dpo.data.micro_batches import Forked
from mlx_dpo.forward.head import Split
from mlx_dpo.forward.prefix_cache import Layout, prefix_caches


def completion_rows(split: Split, batch: Forked) -> list[mx.array]:
    """Hidden rows of each group of completions, [completions, tokens, hidden], in step with its targets.

    Raises `Unshareable` where the model asks for a cache that no stand-in exists for.
    """
    padding, width = batch.padding, batch.prompts.shape[1]
    padded = bool(padding.any())
    real = mx.array(np.arange(width)[None] >= padding[:, None]) if padded else None
    prompts = Layout(mx.array(-padding) if padded else 0, before=0, real=real)
    caches = prefix_caches(split.model, prompts, padding)
    if width:
        split.model(mx.array(batch.prompts), cache=caches)  # for what it leaves in the caches
    rows = []
    for group in batch.completions:
        of = group.prompt_of
        start = mx.array(width - padding[of]) if padded else width
        layout = Layout(start, before=width, real=None if real is None else real[mx.array(of)])
        rows.append(split.hidden(mx.array(group.inputs), [cache.fork(layout, of) for cache in caches]))
    return rows
