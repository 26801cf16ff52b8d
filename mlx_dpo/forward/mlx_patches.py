"""The functions of mlx and mlx-lm that are replaced while a network runs, as the policy or as the reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mlx_dpo.forward.attention import blockwise_attention, checked_attention
from mlx_dpo.forward.gated_delta_rule import chunked_gated_delta
from mlx_dpo.forward.kernels_without_gradient import operations_for_kernels
from mlx_dpo.forward.lightning_attention import chunked_lightning_attention
from mlx_dpo.forward.lora_products import single_product_lora
from mlx_dpo.forward.rwkv7_recurrence import chunked_rwkv7
from mlx_dpo.forward.selective_scan import chunked_selective_scan

# Attention in blocks calls what it replaces, so what that is comes first.
PATCHES = (
    checked_attention,
    blockwise_attention,
    single_product_lora,
    chunked_gated_delta,
    chunked_lightning_attention,
    chunked_rwkv7,
    chunked_selective_scan,
    operations_for_kernels,
)


@contextmanager
def patched_mlx() -> Iterator[None]:
    """Inside a `with` block, models compute the same with less memory and time; afterwards everything is as before."""
    with ExitStack() as stack:
        for patch in PATCHES:
            stack.enter_context(patch())
        yield
