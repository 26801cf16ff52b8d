"""Small models with random weights, made in memory, and sequences for them."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.data.micro_batches import MicroBatch

VOCABULARY = 320
GROUP_SIZE = 32  # of quantized weights; every layer's width is a multiple of it
_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "sliding_window": 8,
}
_OF_TYPE: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "gemma3_text": {"sliding_window_pattern": 2},  # attention to a window of tokens, then to all
    "qwen3_next": {  # a layer with the gated delta rule, then one with attention
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 2,
        "partial_rotary_factor": 0.5,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0, 1],
        "num_experts": 0,
        "num_experts_per_tok": 0,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
}


def make_tiny_model(model_type: str, *, bits: int | None = None, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """Make a model with a trainable adapter, in training mode; the same at every call.

    Args:
        model_type: one of those that this module has a config of.
        bits: of quantized weights; None for none.
        dtype: of all other weights.
    """
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    args = module.ModelArgs.from_dict({**_COMMON, **_OF_TYPE[model_type], "model_type": model_type})
    mx.random.seed(3)
    model: nn.Module = module.Model(args)
    model.set_dtype(mx.float32)
    _add_noise(model, tree_flatten(model.parameters()))  # no weight stays at the zeros and ones that it begins with
    if bits is not None:
        nn.quantize(model, GROUP_SIZE, bits)
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0))
    _add_noise(model, tree_flatten(model.trainable_parameters()))
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model.train()


def _add_noise(model: nn.Module, tensors: list[tuple[str, mx.array]]) -> None:
    model.update(tree_unflatten([(name, value + 0.05 * mx.random.normal(value.shape)) for name, value in tensors]))


def make_batch(prompt_lengths: Sequence[int]) -> MicroBatch:
    """Two random completions of 1 to 24 tokens for each of some random prompts.

    Args:
        prompt_lengths: tokens of each prompt; at most four.
    """
    generator = random.Random(0)

    def token_ids(length: int) -> tuple[int, ...]:
        return tuple(generator.randrange(3, VOCABULARY) for _ in range(length))

    prompts = [token_ids(length) for length in prompt_lengths]
    lengths = (1, 12, 3, 24, 8, 2, 17, 5)[: 2 * len(prompts)]
    sequences = tuple((prompt, token_ids(n)) for prompt, n in zip(prompts * 2, lengths, strict=True))
    return MicroBatch((), sequences)
