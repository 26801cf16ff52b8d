"""Which layers are adapted where none are named, and keys that name nothing."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from mlx_dpo.adapters.attach import trainable_tensors
from mlx_dpo.adapters.default_keys import adaptable_keys, default_keys, require_matching_keys
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.errors import UserError
from mlx_dpo.forward.policy import make_policy
from tests.forward.families import tiny

ROUTERS = {
    "mixtral": {"block_sparse_moe.gate"},
    "qwen3_moe": {"mlp.gate"},
    "gpt_oss": {"mlp.router"},
    "granitemoe": {"block_sparse_moe.router.layer"},
    "bailing_moe": {"mlp.gate.gate_proj"},
    "deepseek_v32": set(),  # the router is no linear layer, and an indexer has as many outputs as there are experts
    "llama": set(),
}


@pytest.mark.parametrize("family", ROUTERS)
def test_routers_are_left_out_and_said(family: str) -> None:
    model = tiny(family)
    keys, notes = default_keys(model, "lora")
    assert set(adaptable_keys(model, "lora")) - set(keys) == ROUTERS[family]
    assert [name for note in notes for name in ROUTERS[family] if name in note] == list(ROUTERS[family])
    assert any(isinstance(m, SwitchLinear | QuantizedSwitchLinear) for m in model.modules()) == (family != "llama")


def test_quantized_routers_are_left_out() -> None:
    model = tiny("mixtral")
    nn.quantize(model, group_size=32, bits=8, class_predicate=lambda _, m: hasattr(m, "to_quantized"))
    keys, _ = default_keys(model, "lora")
    assert set(adaptable_keys(model, "lora")) - set(keys) == ROUTERS["mixtral"]


def test_layers_that_a_model_reads_by_weight_are_left_out_and_it_trains() -> None:
    model = tiny("gemma3n")
    tokens = mx.array([[3, 5, 4]])
    before = np.array(model(tokens))
    policy = make_policy(model, AdapterSpec("lora", -1, rank=4, scale=4.0), None)
    assert len(policy.notes) == 1 and "altup.correction_coefs, altup.prediction_coefs" in policy.notes[0]
    assert trainable_tensors(model) and not any("coefs" in name for name in trainable_tensors(model))
    np.testing.assert_array_equal(np.array(model(tokens)), before)


def test_a_key_that_names_nothing_is_refused_with_near_ones() -> None:
    model = tiny("llama")
    for keys in (("self_attn.q_proj",), ("self_attn.q_proj", "lm_head"), ("model.layers.0.mlp.up_proj",)):
        require_matching_keys(model, keys, 2)
    with pytest.raises(UserError, match=r"is named 'self_attn.v_prj'\nDid you mean `self_attn.v_proj`") as raised:
        make_policy(model, AdapterSpec("lora", -1, keys=("self_attn.q_proj", "self_attn.v_prj")), None)
    assert raised.value.field == "lora_keys" and "self_attn.q_proj'" not in str(raised.value)


def test_a_key_of_earlier_blocks_names_nothing_in_the_last() -> None:
    model = tiny("qwen3_next")
    first, last = ({name for name, m in layer.named_modules() if isinstance(m, nn.Linear)} for layer in model.layers)
    key = min(first - last)
    require_matching_keys(model, [key], 2)
    with pytest.raises(UserError, match="in the last 1 blocks is named"):
        require_matching_keys(model, [key], 1)
