"""What training relies on beside numbers: mlx's memory counters, and the time that a GPU takes for one command."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.doctor.check import CheckOutcome, failed, passed, skipped, warned
from mlx_dpo.forward.device import runs_on_cpu, usable_memory
from mlx_dpo.forward.head import find_head_split
from mlx_dpo.forward.memory_model import SATURATING_TOKENS, MemoryModel
from mlx_dpo.forward.micro_batch_size import MAX_BLOCK_SECONDS, StepTime
from mlx_dpo.forward.network import Network, PromptSharing
from mlx_dpo.forward.token_logps import head_chunk_tokens
from mlx_dpo.utils.formatting import format_bytes
from mlx_dpo.utils.garbage_collection import no_garbage_collection

ARRAY_BYTES = 16 << 20
COUNTER_TOLERANCE = 1 << 20  # bytes: allocations are rounded up to pages
BITS, GROUP_SIZE = 4, 64  # of the measured model's weights


def check_memory_counters() -> CheckOutcome:
    """Compare mlx's counters with the sizes of arrays, as they are made and freed."""
    with no_garbage_collection():  # nothing else is freed between the readings
        mx.synchronize()
        mx.clear_cache()  # a cached buffer that is reused may be larger
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        first, second = (mx.arange(start, start + ARRAY_BYTES // 4, dtype=mx.float32) for start in range(2))
        mx.eval(first, second)
        held = mx.get_active_memory() - before
        del second
        mx.synchronize()
        held_after, peak = mx.get_active_memory() - before, mx.get_peak_memory() - before
        del first
    readings = {
        "active memory with two arrays": (held, 2 * ARRAY_BYTES),
        "active memory after one was freed": (held_after, ARRAY_BYTES),
        "peak memory": (peak, 2 * ARRAY_BYTES),
    }
    for name, (measured, expected) in readings.items():
        if abs(measured - expected) > COUNTER_TOLERANCE:
            return failed(
                f"{name}: mlx counts {format_bytes(measured)}, where {format_bytes(expected)} were allocated",
                "Training measures what a micro-batch needs with these counters. Set --micro-batch-tokens and "
                "--grad-checkpoint yourself, or install another version of mlx, and report this one.",
            )
    return passed(f"{format_bytes(2 * ARRAY_BYTES)} allocated, half of it freed: counted so")


@dataclass(frozen=True)
class MeasuredModel:
    """The sizes of a model of which one block is timed. The default is Qwen3 8B, in 4 bits."""

    name: str = "an 8B model in 4 bits"
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_heads: int = 32
    num_key_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151_936


def check_command_time(sizes: MeasuredModel = MeasuredModel()) -> CheckOutcome:
    """Time the longest commands that training gives to a GPU: one block's passes, and one chunk of the head.

    Args:
        sizes: of the model.
    """
    if runs_on_cpu():
        return skipped("mlx computes on the CPU, which no watchdog ends")
    seconds = {"a block's forward and backward pass": _block_seconds(sizes), "a chunk of logits": _head_seconds(sizes)}
    part = max(seconds, key=lambda name: seconds[name])
    text = f"{part} of {sizes.name} takes {seconds[part]:.2f} s, of {MAX_BLOCK_SECONDS:.0f} s that training allows"
    if seconds[part] <= MAX_BLOCK_SECONDS:
        return passed(text)
    return warned(
        text,
        "macOS ends a process whose GPU command takes a few seconds while the display is on. Train models that are "
        "smaller by as much, or with the display off; close what else uses the GPU.",
    )


def _block_seconds(sizes: MeasuredModel) -> float:
    """Of the smallest micro-batch that training measures."""
    from mlx_lm.models import llama

    mx.random.seed(0)
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=sizes.hidden_size,
        num_hidden_layers=1,
        intermediate_size=sizes.intermediate_size,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_key_heads,
        head_dim=sizes.head_dim,
        rms_norm_eps=1e-6,
        vocab_size=GROUP_SIZE,  # the head is timed apart
    )
    model: Any = llama.Model(args)
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, GROUP_SIZE, BITS)
    attach_adapter(model, AdapterSpec("lora", -1))
    for _, module in model.named_modules():  # one after the other: unpacked weights are freed
        mx.eval(module.parameters())
    network = Network(model.train(), find_head_split(model), PromptSharing.ANY_PROMPTS, GROUP_SIZE, SATURATING_TOKENS)
    step = StepTime.measure(MemoryModel.for_training(network, usable_memory(), None, False))
    return step.fixed + SATURATING_TOKENS * step.per_token


def _head_seconds(sizes: MeasuredModel) -> float:
    """Of the product of a chunk's hidden states with the vocabulary's weights."""
    packed = np.random.default_rng(0).integers(
        0, 1 << 32, (sizes.vocab_size, sizes.hidden_size * BITS // 32), np.uint32
    )
    scales = mx.ones((sizes.vocab_size, sizes.hidden_size // GROUP_SIZE), mx.bfloat16)
    weight, tokens = mx.array(packed), head_chunk_tokens(sizes.vocab_size, usable_memory())
    hidden = mx.ones((tokens, sizes.hidden_size), mx.bfloat16)

    def seconds() -> float:
        began = time.perf_counter()
        mx.eval(mx.quantized_matmul(hidden, weight, scales, scales, True, GROUP_SIZE, BITS))
        return time.perf_counter() - began

    seconds()  # kernels are compiled and memory is allocated
    return seconds()
