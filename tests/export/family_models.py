"""Model and adapter folders of any type of tests/forward/families.py."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model

from mlx_dpo.adapters.attach import attach_adapter, trainable_tensors
from mlx_dpo.adapters.spec import AdapterSpec
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.training.run_folder import RunFolder
from tests.conftest import CHECKPOINT
from tests.forward.families import COMMON, CONFIGS, tiny


def save_model(
    folder: Path, family: str, quantization: dict[str, Any] | None = None, dtype: mx.Dtype = mx.float32
) -> Path:
    """A random model folder with the tiny checkpoint's tokenizer, quantized as `mlx_lm.convert` does."""
    model, config = tiny(family), {**COMMON, **CONFIGS[family], "model_type": family, "eos_token_id": 2}
    model.set_dtype(dtype)
    folder.mkdir()
    _save(folder, model, config)
    if quantization:
        loaded = load_model(str(folder)).model  # as mlx-lm loads it: some types change weights then
        group_size, bits, mode = (quantization[name] for name in ("group_size", "bits", "mode"))
        with redirect_stdout(io.StringIO()):  # it prints the bits
            quantized, config = quantize_model(loaded, config, group_size, bits, mode)
        _save(folder, quantized, config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder)
    return folder


def _save(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    weights = dict(tree_flatten(model.parameters()))
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def save_adapter(folder: Path, model: Path, keys: Sequence[str] | None = None, size: float = 0.05) -> Path:
    """A random adapter folder, as training leaves one: lora_b is not zero."""
    loaded = load_model(str(model)).model
    spec = AdapterSpec("lora", -1, rank=4, scale=4.0, keys=None if keys is None else tuple(keys))
    spec = attach_adapter(loaded, spec)
    mx.random.seed(1)
    tensors = {name: size * mx.random.normal(v.shape) for name, v in trainable_tensors(loaded).items()}
    RunFolder(folder).save_adapter(tensors, spec, str(model))
    return folder
