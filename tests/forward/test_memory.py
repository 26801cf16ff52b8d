"""What a step takes in memory, by mlx's own count: not the logits, not the square of the prompt, not the batch."""

from __future__ import annotations

import gc
import importlib

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward.activation_memory import BatchCost, synthetic_pair
from mlx_dpo.forward.memory_model import SATURATING_TOKENS, MemoryModel
from mlx_dpo.forward.network import Network
from mlx_dpo.forward.token_logps import MIN_CHUNK_TOKENS, chunk_bytes
from tests.forward.test_architectures import COMMON


def network(vocabulary: int = 2048, layers: int = 4, memory_limit: int | None = None) -> Network:
    module = importlib.import_module("mlx_lm.models.qwen3")
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": layers, "max_position_embeddings": 8192}
    model = module.Model(module.ModelArgs.from_dict({**COMMON, **sizes, "model_type": "qwen3"}))
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0))
    mx.eval(model.parameters())
    return Network.from_model(model.train(), memory_limit=memory_limit)


def peak(network: Network, prompt: int, completion: int, recomputed: int = 0) -> int:
    """Bytes of a forward and a backward pass on a pair, above the weights."""
    batch = synthetic_pair(prompt, completion)
    network.trace(batch, recomputed).gradient(np.ones(2))  # what is made once is made
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    network.trace(batch, recomputed).gradient(np.ones(2))
    return mx.get_peak_memory() - held


@pytest.mark.parametrize("completion", [100, 400])
def test_the_logits_of_one_chunk_are_in_memory(completion: int) -> None:
    vocabulary = 151_936
    one = network(vocabulary, memory_limit=10**9)
    assert one.chunk_tokens == MIN_CHUNK_TOKENS
    chunk = chunk_bytes(vocabulary, MIN_CHUNK_TOKENS)
    others = peak(network(2048), 200, completion)
    assert 0.8 * chunk < peak(one, 200, completion) < 1.1 * (chunk + others)


def test_memory_grows_with_the_prompt_and_not_with_its_square() -> None:
    one = network()
    everything = one.num_checkpointable
    short, long = peak(one, 1024, 32, everything), peak(one, 2048, 32, everything)
    assert long < 2.1 * short


def test_recomputed_parts_keep_their_inputs_only() -> None:
    one = network(layers=8)
    whole, without_feed_forwards, least = (
        one.activation_bytes(synthetic_pair(200, 50), recomputed) for recomputed in (0, 8, 16)
    )
    assert one.num_checkpointable == 16
    assert without_feed_forwards < 0.8 * whole and least < 0.35 * whole
    assert peak(one, 200, 50, 16) < 0.5 * peak(one, 200, 50, 0)


@pytest.mark.parametrize(("recomputed", "over"), [(0, 1.1), (2, 1.15), (4, 1.15), (6, 1.3)])
@pytest.mark.parametrize(("prompt", "completion"), [(400, 30), (100, 150), (700, 300)])
def test_what_is_kept_is_foreseen(prompt: int, completion: int, recomputed: int, over: float) -> None:
    one = network()
    budget = MemoryModel.for_training(one, usable_bytes=1 << 40, memory_limit=None, grad_checkpoint=False)
    assert budget.activation_memory is not None
    batch = synthetic_pair(prompt, completion)
    foreseen, kept = (
        budget.activation_memory.activation_bytes(BatchCost.from_batch(batch, one.sharing), recomputed),
        one.activation_bytes(batch, recomputed),
    )
    assert 0.9 * kept < foreseen < over * kept


@pytest.mark.parametrize("recomputed", [0, 4, 8])
def test_nothing_is_held_after_a_backward_pass(recomputed: int) -> None:
    one, batch = network(), synthetic_pair(200, 50)
    assert one.num_checkpointable == 8
    one.trace(batch, recomputed).gradient(np.ones(2))  # what is made once is made
    gc.collect()
    before, tensors = mx.get_active_memory(), trainable_tensors(one.model)
    gc.disable()  # no reference cycle keeps activations until the next collection
    try:
        one.trace(batch, recomputed).gradient(np.ones(2))
        held = mx.get_active_memory() - before
    finally:
        gc.enable()
    assert held < 4096  # less than the hidden states of 16 tokens
    assert all(tensor is tensors[name] for name, tensor in trainable_tensors(one.model).items())


def test_a_long_pair_keeps_no_more_than_a_busy_one_unless_it_may() -> None:
    one = network(layers=8)
    lean = MemoryModel.for_training(one, usable_bytes=1 << 40, memory_limit=None, grad_checkpoint=False)
    rich = MemoryModel.for_training(one, usable_bytes=1 << 40, memory_limit=1 << 36, grad_checkpoint=False)
    fitting, long = (
        synthetic_pair(SATURATING_TOKENS // 2, SATURATING_TOKENS // 4),
        synthetic_pair(SATURATING_TOKENS, SATURATING_TOKENS // 4),
    )
    assert lean.num_checkpointed(fitting) == 0 < lean.num_checkpointed(long) < 16
    assert rich.num_checkpointed(long) == 0
    assert one.activation_bytes(long, lean.num_checkpointed(long)) <= 1.05 * one.activation_bytes(fitting)
    trained = sum(v.nbytes for _, v in tree_flatten(one.model.trainable_parameters()))
    assert lean.resident_bytes >= 4 * trained


def test_the_models_own_call_is_left_as_it_was() -> None:
    one = network()
    attend, layer = mx.fast.scaled_dot_product_attention, type(one.model.layers[0]).__call__
    one.trace(synthetic_pair(20, 5), 2).gradient(np.ones(2))
    assert mx.fast.scaled_dot_product_attention is attend
    assert type(one.model.layers[0]).__call__ is layer
