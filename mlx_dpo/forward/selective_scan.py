"""The selective scan of Mamba-1 in chunks, where mlx-lm loops over tokens.

    h_t = exp(delta_t A) * h_{t-1} + (delta_t x_t) B_t^T,  y_t = h_t C_t + D x_t

All chunks of a segment take their first token together, from a state of zero, then their second, and so on. Then the
states before the chunks are computed one after the other, and each token's state gets what is left of its chunk's.
Source: Gu and Dao 2023, "Mamba" (arXiv 2312.00752), equation 2 and algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.jamba import JambaMambaMixer
from mlx_lm.models.mamba import MambaBlock

from mlx_dpo.forward.chunked_recurrence import in_segments

CHUNK = 8  # tokens; as many chunks are a segment
SEGMENT = CHUNK * CHUNK  # a state is 16 times as large as a token, so segments are shorter than elsewhere


@contextmanager
def chunked_selective_scan() -> Iterator[None]:
    """Make mlx-lm's Mamba and Jamba layers work in chunks inside a `with` block."""
    mamba, jamba = MambaBlock._process_sequence, JambaMambaMixer.ssm_step
    MambaBlock._process_sequence, JambaMambaMixer.ssm_step = _mamba_sequence, _jamba_scan
    try:
        yield
    finally:
        MambaBlock._process_sequence, JambaMambaMixer.ssm_step = mamba, jamba


def selective_scan(
    x: mx.array, delta: mx.array, b: mx.array, c: mx.array, a: mx.array, state: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Compute the recurrence of the module's docstring, without D x_t.

    The backward pass keeps the inputs and a state for each `SEGMENT` tokens, and recomputes the rest.

    Args:
        x: [B, T, E], inputs.
        delta: [B, T, E], step sizes, positive.
        b: [B, T, N], where inputs are written.
        c: [B, T, N], what is read.
        a: [E, N], decay rates, negative.
        state: [B, E, N], the state to start from; None for zeros.

    Returns:
        Outputs, [B, T, E] in the dtype of x, and the last state, [B, E, N] float32.
    """
    state = mx.zeros((x.shape[0], *a.shape)) if state is None else state.astype(mx.float32)
    y, state = in_segments(_segment, num_constants=1, size=SEGMENT)(x, delta, b, c, a.astype(mx.float32), state)[:2]
    return y, state


def _segment(
    x: mx.array, delta: mx.array, b: mx.array, c: mx.array, a: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """`selective_scan` of a few chunks, with all intermediates in memory."""
    batch, length, dtype = x.shape[0], x.shape[1], x.dtype

    def positions(array: mx.array) -> list[mx.array]:
        """For each position in a chunk, [B, chunks, size]. Padding is zero, which leaves the state as it is."""
        array = mx.pad(array.astype(mx.float32), [(0, 0), (0, -length % CHUNK), (0, 0)])
        return [p.squeeze(2) for p in mx.split(array.reshape(batch, -1, CHUNK, array.shape[-1]), CHUNK, axis=2)]

    decays: list[mx.array] = []
    states: list[mx.array] = []
    for x_i, delta_i, b_i in zip(positions(x), positions(delta), positions(b), strict=True):
        decay = mx.exp(delta_i[..., None] * a)
        written = (delta_i * x_i)[..., None] * b_i[..., None, :]
        decays.append(decays[-1] * decay if decays else decay)
        states.append(decay * states[-1] + written if states else written)
    befores, num_chunks = [], states[0].shape[1]
    for decay, own in zip(*(mx.split(array[-1], num_chunks, axis=1) for array in (decays, states)), strict=True):
        befores.append(state)
        state = decay.squeeze(1) * state + own.squeeze(1)
    before = mx.stack(befores, axis=1)
    outputs = [
        ((own + decay * before) @ c_i[..., None]).squeeze(-1)
        for own, decay, c_i in zip(states, decays, positions(c), strict=True)
    ]
    y = mx.stack(outputs, axis=2).reshape(batch, -1, x.shape[-1])[:, :length]
    return y.astype(dtype), state


def _mamba_sequence(
    block: MambaBlock, x: mx.array, conv_cache: mx.array | None, state: mx.array | None
) -> tuple[mx.array, tuple[mx.array, mx.array]]:
    """What `MambaBlock._process_sequence` does, with the projections of all tokens in one product."""
    x, z = block.in_proj(x).split(2, axis=-1)
    earlier = block.conv_kernel_size - 1
    x = mx.pad(x, [(0, 0), (earlier, 0), (0, 0)]) if conv_cache is None else mx.concatenate([conv_cache, x], axis=1)
    new_conv_cache = x[:, -earlier:]
    x = nn.silu(block.conv1d(x))
    rank, size = block.time_step_rank, block.ssm_state_size
    delta, b, c = mx.split(block.x_proj(x), [rank, rank + size], axis=-1)
    if block.use_bcdt_rms:
        eps = block.args.mixer_rms_eps
        delta, b, c = (mx.fast.rms_norm(part, weight=None, eps=eps) for part in (delta, b, c))
    y, state = _scan(block, x, delta, b, c, -mx.exp(block.A_log), state)
    return block.out_proj(swiglu(z, y)), (new_conv_cache, state)


def _jamba_scan(
    mixer: JambaMambaMixer, x: mx.array, a: mx.array, state: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """What `JambaMambaMixer.ssm_step` does."""
    rank, size = mixer.time_step_rank, mixer.ssm_state_size
    delta, b, c = mx.split(mixer.x_proj(x), [rank, rank + size], axis=-1)
    delta, b, c = mixer.dt_layernorm(delta), mixer.b_layernorm(b), mixer.c_layernorm(c)
    return _scan(mixer, x, delta, b, c, a, state)


def _scan(
    layer: MambaBlock | JambaMambaMixer,
    x: mx.array,
    delta: mx.array,
    b: mx.array,
    c: mx.array,
    a: mx.array,
    state: mx.array | None,
) -> tuple[mx.array, mx.array]:
    y, state = selective_scan(x, nn.softplus(layer.dt_proj(delta)), b, c, a, state)
    return y + layer.D * x, state
