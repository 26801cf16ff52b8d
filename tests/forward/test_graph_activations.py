"""Activations counted in the graph, against those that mlx measures on the running model."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.errors import UserError
from mlx_dpo.forward.activation_memory import synthetic_pair
from mlx_dpo.forward.graph_activations import count_activation_bytes, lazy_network
from mlx_dpo.forward.network import Network
from tests.forward.families import KEYS, tiny

# Dense, experts, shared keys, sliding windows, latent attention, gated delta nets, no shared prompt.
FAMILIES = ["qwen3", "Klear", "gemma3_text", "gemma4_text", "deepseek_v3", "kimi_linear", "gemma3n"]
PAIR = synthetic_pair(257, 32)


def adapted(family: str, num_layers: int = -1) -> Network:
    model = tiny(family)
    attach_adapter(model, AdapterSpec("lora", num_layers, rank=4, scale=4.0, keys=KEYS.get(family)))
    mx.eval(model.parameters())
    network = Network.from_model(model.train())
    network.activation_bytes(synthetic_pair(33, 16))  # what is made once is made
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_the_count_is_what_a_forward_pass_keeps(family: str) -> None:
    network = adapted(family)
    num_feed_forwards = network.num_checkpointable - len(network.model.layers)
    for num_checkpointed, tolerance in ((0, 0.05), (num_feed_forwards, 0.05), (network.num_checkpointable, 0.25)):
        counted = count_activation_bytes(network, PAIR, num_checkpointed)
        assert counted == pytest.approx(network.activation_bytes(PAIR, num_checkpointed), rel=tolerance)


@pytest.mark.parametrize("num_checkpointed", [0, 2, 3, 4])
def test_blocks_below_the_first_adapter_keep_nothing(num_checkpointed: int) -> None:
    network = adapted("qwen3", num_layers=1)
    counted = count_activation_bytes(network, PAIR, num_checkpointed)
    assert counted == pytest.approx(network.activation_bytes(PAIR, num_checkpointed), rel=0.05)


def test_the_model_is_left_as_it_was() -> None:
    network, functions = adapted("qwen3"), (mx.checkpoint, mx.custom_function, mx.gather_mm, mx.contiguous)
    tensors = trainable_tensors(network.model)
    count_activation_bytes(network, PAIR, 4)
    assert all(tensor is tensors[name] for name, tensor in trainable_tensors(network.model).items())
    assert functions == (mx.checkpoint, mx.custom_function, mx.gather_mm, mx.contiguous)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_lazy_network_runs_as_a_loaded_one_does(family: str) -> None:
    network = adapted(family)
    lazy = lazy_network(network.model)
    assert lazy.vocab_size == network.vocab_size
    assert count_activation_bytes(lazy, PAIR) == count_activation_bytes(network, PAIR)


def test_a_model_that_cannot_be_traced_is_said_so() -> None:
    with pytest.raises(UserError, match="type dbrx can't be derived from its config alone"):
        count_activation_bytes(adapted("dbrx"), PAIR)
