"""Metal kernels of mlx-lm that have no gradient, replaced by the operations that they stand for.

Most of mlx-lm's models use their kernels only outside of training. These don't ask:

- the step of Mamba-2 layers, for one token after a state: a completion of one token after a shared prompt;
- the normalization of hyper-connections in DeepSeek V4.1.

The kernels of gated delta layers and RWKV-7 are replaced in `gated_delta_rule.py` and `rwkv7_recurrence.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlx_lm.models import deepseek_v41, ssm


@contextmanager
def operations_for_kernels() -> Iterator[None]:
    """Make mlx-lm's layers differentiable on Metal inside a `with` block."""
    step, normalization = ssm.ssm_update_kernel, deepseek_v41._sinkhorn_kernel
    ssm.ssm_update_kernel, deepseek_v41._sinkhorn_kernel = ssm.ssm_attn, None
    try:
        yield
    finally:
        ssm.ssm_update_kernel, deepseek_v41._sinkhorn_kernel = step, normalization
