"""Writing a fused model takes a shard's memory and a layer's, not the model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

from mlx_dpo import UserError
from mlx_dpo.adapters import merging as folding
from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.merging import FLOAT_PRECISION, Precision
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.export.fuse import model_writer as stream
from mlx_dpo.export.fuse.adapted_model import AdaptedModel
from mlx_dpo.export.fuse.fuse_adapter import fuse_adapter
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.training.run_folder import RunFolder
from tests.forward import test_architectures as architectures

SIZES = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "vocab_size": 2048}
SHARD = 4 << 20


def adapted(folder: Path, monkeypatch: pytest.MonkeyPatch, **sizes: Any) -> tuple[Path, Path]:
    """A model folder, and the folder of an adapter on all its layers."""
    monkeypatch.setattr(architectures, "COMMON", {**architectures.COMMON, **sizes})
    monkeypatch.setattr(stream, "SHARD_BYTES", SHARD)
    model = architectures.make_model(folder / "model", "llama", {"group_size": 64, "bits": 4}, mx.bfloat16)
    loaded = load_model(str(model)).model
    spec = attach_adapter(loaded, AdapterSpec("lora", -1, rank=4, scale=4.0))
    run = RunFolder(folder / "run")
    run.create()
    run.save_adapter({k: v + 1e-3 for k, v in trainable_tensors(loaded).items()}, spec, str(model))
    return model, folder / "run"


@pytest.mark.parametrize("bits", ["same", "8", "none"])
def test_memory_is_a_shards_and_a_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: Any) -> None:
    model, run = adapted(tmp_path, monkeypatch, **SIZES)
    monkeypatch.setattr(folding, "SLICE_WEIGHTS", 1 << 18)
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    size = fuse_adapter(str(model), run, tmp_path / "f", bits=bits).fused_model.bytes
    taken = mx.get_peak_memory() - held
    assert taken < 4 * SHARD < size
    assert len(list((tmp_path / "f").glob("model-*-of-*.safetensors"))) > size / SHARD / 1.5


def test_mlx_lm_loads_layers_of_unlike_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In shards, with a precision for each layer: bits, groups and float, over a 4-bit base."""
    model, run = adapted(tmp_path, monkeypatch)
    monkeypatch.setattr(stream, "SHARD_BYTES", 1 << 14)
    source = AdaptedModel(str(model), run)
    names = list(folding.adapted_layers(source.load()[0].model))
    choices = [Precision(4), Precision(5), Precision(6, 32), Precision(8), FLOAT_PRECISION]
    plan = {name: choices[i % len(choices)] for i, name in enumerate(names)}
    stream.write_fused_model(tmp_path / "f", source.load()[0], plan, load_tokenizer(str(model)))
    loaded, _ = mlx_lm.load(str(tmp_path / "f"))
    assert len(list((tmp_path / "f").glob("model-*-of-*.safetensors"))) > 3
    layers = dict(loaded.named_modules())
    assert {name: folding.layer_precision(layers[name]) for name in plan} == plan
    ids = mx.array([[5, 6, 7, 8]])
    assert mx.array_equal(loaded(ids), source.load_fused(plan)(ids))


def test_nothing_is_left_of_what_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = adapted(tmp_path, monkeypatch)

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[save_safetensors] Failed to write")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(UserError, match="can't be written"):
        fuse_adapter(str(model), run, tmp_path / "f", bits="8")
    assert {p.name for p in tmp_path.iterdir()} == {"model", "run"}
