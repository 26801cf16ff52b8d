"""All that is replaced in mlx and mlx-lm while a network runs, in training and for the reference alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mlx_dpo.forward.attention import blockwise_attention
from mlx_dpo.forward.gated_delta_rule import chunked_gated_delta
from mlx_dpo.forward.lightning_attention import chunked_lightning_attention
from mlx_dpo.forward.lora_products import single_product_lora

PATCHES = (blockwise_attention, single_product_lora, chunked_gated_delta, chunked_lightning_attention)


@contextmanager
def patched_mlx() -> Iterator[None]:
    """Inside a `with` block, models compute the same with less memory and time; afterwards all is as before."""
    with ExitStack() as stack:
        for patch in PATCHES:
            stack.enter_context(patch())
        yield
