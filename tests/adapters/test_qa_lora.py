"""Training that knows it will be fused: against the base, plain LoRA and DoRA math, and the fused layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo import Interrupted, TrainConfig, UserError, evaluate, train
from mlx_dpo.adapters.attach import attach_adapter
from mlx_dpo.adapters.merging import adapted_layers, layer_precision, merge_layer
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward.fingerprint import fingerprint
from mlx_dpo.forward.network import Network
from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.forward.test_architectures import QUANTIZATIONS, make_model
from tests.marks import mostly_slow
from tests.training.test_run import StopAfter

IDS = mx.array([[5, 6, 7, 8, 9, 10, 11, 3, 4]])
KINDS = [("llama", "lora"), ("llama", "dora"), ("qwen3_moe", "lora")]
BITS = QUANTIZATIONS["4bit"]


def attached(
    folder: Path, family: str, kind: str, dtype: mx.Dtype = mx.float32, fuse_bits: int | None = 4
) -> nn.Module:
    model, _ = mlx_lm.load(str(make_model(folder / "model", family, BITS, dtype)))
    attach_adapter(model, AdapterSpec(kind, -1, rank=4, scale=4.0, fuse_bits=fuse_bits))
    return model


def moved(model: nn.Module) -> nn.Module:
    """With a B that is not zero, and DoRA's magnitudes off their start."""
    mx.random.seed(1)
    trained = {k: v for k, v in tree_flatten(model.trainable_parameters()) if not k.endswith("lora_a")}
    model.update(tree_unflatten([(k, v + 0.05 * mx.random.normal(v.shape)) for k, v in trained.items()]))
    return model


def plain(model: nn.Module, folder: Path, family: str, kind: str) -> nn.Module:
    """mlx-lm's own layers with the same tensors."""
    other, _ = mlx_lm.load(str(folder / "model"))
    attach_adapter(other, AdapterSpec(kind, -1, rank=4, scale=4.0))
    other.update(tree_unflatten(tree_flatten(model.trainable_parameters())))
    return other


def gradient(model: nn.Module) -> dict[str, mx.array]:
    def loss() -> mx.array:
        return nn.losses.cross_entropy(model(IDS[:, :-1]), IDS[:, 1:]).mean()

    return dict(tree_flatten(nn.value_and_grad(model, loss)()[1]))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_at_the_start_it_is_the_base_to_the_bit(tmp_path: Path, family: str, kind: str, dtype: mx.Dtype) -> None:
    model = attached(tmp_path, family, kind, dtype)
    base, _ = mlx_lm.load(str(tmp_path / "model"))
    assert mx.array_equal(model(IDS), base(IDS))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_it_computes_what_will_be_fused_to_the_bit(tmp_path: Path, family: str, kind: str, dtype: mx.Dtype) -> None:
    model = moved(attached(tmp_path, family, kind, dtype))
    expected, base = model(IDS), mlx_lm.load(str(tmp_path / "model"))[0]
    layers = {name: merge_layer(layer, layer_precision(layer)) for name, layer in adapted_layers(model).items()}
    for name, layer in layers.items():
        own = dict(base.named_modules())[name]
        assert mx.array_equal(layer.weight, own.weight) and layer.bits == 4  # the base's codes
        assert layer.biases.dtype == own.biases.dtype and not mx.array_equal(layer.biases, own.biases)
    base.update_modules(tree_unflatten(list(layers.items())))
    assert mx.array_equal(base(IDS), expected)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_values_and_gradients_are_the_plain_adapters(tmp_path: Path, family: str, kind: str) -> None:
    """In float32, where offsets are not rounded; the gradient of A is shared by the inputs of a group."""
    model = moved(attached(tmp_path, family, kind))
    other = plain(model, tmp_path, family, kind)
    np.testing.assert_allclose(np.array(model(IDS)), np.array(other(IDS)), atol=2e-4)
    ours, theirs = gradient(model), gradient(other)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if name.endswith("lora_a"):
            inputs = 0 if expected.ndim == 2 else 2
            groups = mx.unflatten(expected, inputs, (-1, 32)).mean(inputs + 1, keepdims=True)
            expected = mx.repeat(groups, 32, axis=inputs + 1).flatten(inputs, inputs + 1)
        largest = max(mx.abs(g).max().item() for g in theirs.values())
        np.testing.assert_allclose(np.array(ours[name]), np.array(expected), atol=1e-5 * largest, err_msg=name)


def test_dropout_drops_in_training_only(tmp_path: Path) -> None:
    model, _ = mlx_lm.load(str(make_model(tmp_path / "model", "llama", BITS)))
    attach_adapter(model, AdapterSpec("lora", -1, rank=4, scale=4.0, dropout=0.5, fuse_bits=4))
    moved(model)
    model.eval()
    whole = model(IDS)
    model.train()
    assert not mx.allclose(model(IDS), whole, atol=1e-3)
    model.eval()
    assert mx.array_equal(model(IDS), whole)


def test_its_log_probs_are_cached_apart_from_a_plain_adapters(tmp_path: Path) -> None:
    model = attached(tmp_path, "llama", "lora", mx.bfloat16)
    base = plain(model, tmp_path, "llama", "lora")
    assert fingerprint(Network.from_model(model)) == fingerprint(Network.from_model(base))  # B is zero
    assert fingerprint(Network.from_model(moved(model))) != fingerprint(Network.from_model(moved(base)))


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("optimizer", mostly_slow(["adamw", "muon"], 2))
def test_a_run(tmp_path: Path, kind: str, optimizer: str) -> None:
    """The reference is the base, A stays one number a group, and mlx-lm takes the adapter for its own."""
    model, run = make_model(tmp_path / "model", "llama", BITS), tmp_path / "run"
    config = TrainConfig(
        model=str(model),
        data=str(PAIRS),
        valid_data=str(PAIRS),
        adapter_path=str(run),
        iters=4,
        learning_rate=1e-3,
        fine_tune_type=kind,
        fuse_bits=4,
        optimizer=optimizer,
    )
    result = train(config)
    assert result.before["rewards/margins"] == 0 < result.after["rewards/margins"]
    for name, tensor in mx.load(str(run / "adapters.safetensors")).items():
        if name.endswith("lora_a"):
            groups = np.array(tensor).reshape(-1, 32, tensor.shape[-1])
            np.testing.assert_allclose(groups, groups[:, :1].repeat(32, 1), atol=1e-6)
    assert json.loads((run / "adapter_config.json").read_text())["fuse_bits"] == 4
    again = evaluate(config, adapter_path=run)
    assert again["rewards/margins"] == pytest.approx(result.after["rewards/margins"], rel=1e-9)
    loaded, tokenizer = mlx_lm.load(str(model), adapter_path=str(run))
    theirs = evaluate(config.replace(reference=str(model)), model=loaded, tokenizer=tokenizer)
    assert theirs["rewards/margins"] == pytest.approx(result.after["rewards/margins"], abs=1e-4)


@pytest.mark.parametrize(
    ("quantization", "knobs", "says"),
    [
        (BITS, {"fuse_bits": 8}, "have 4 bits, not 8"),
        (None, {}, "is not quantized"),
        (QUANTIZATIONS["mxfp4"], {}, "mode mxfp4"),
        (None, {"fine_tune_type": "full"}, "nothing to fuse"),
        (None, {"init_adapter": str(TRL / "adapter"), "model": str(CHECKPOINT)}, "was trained without it"),
    ],
)
def test_refused(tmp_path: Path, quantization: dict[str, Any] | None, knobs: dict[str, Any], says: str) -> None:
    model = make_model(tmp_path / "model", "llama", quantization)
    settings = {"model": str(model), "fuse_bits": 4, **knobs}
    with pytest.raises(UserError, match=says) as raised:
        train(TrainConfig(data=str(PAIRS), adapter_path=str(tmp_path / "run"), **settings))
    assert raised.value.field == "fuse_bits" and raised.value.hint


def test_stopped_and_resumed_is_the_same_to_the_byte(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"iters": 4, "learning_rate": 1e-3, "dropout": 0.1, "fuse_bits": 4, "batch_size": 4}
    model = make_model(tmp_path / "model", "llama", BITS)

    def config(run: str) -> TrainConfig:
        return TrainConfig(model=str(model), data=str(PAIRS), adapter_path=str(tmp_path / run), **settings)

    train(config("whole"))
    listener = StopAfter(2)
    with pytest.raises(Interrupted):
        train(config("cut"), listener=listener, stop=listener.stop)
    train(config("cut"), resume=True)
    whole, cut = ((tmp_path / run / "adapters.safetensors").read_bytes() for run in ("whole", "cut"))
    assert whole == cut
