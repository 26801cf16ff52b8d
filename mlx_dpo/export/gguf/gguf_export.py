"""Write models and adapters as GGUF files, for llama.cpp and programs built on it.

The file format is written by the `gguf` package, which llama.cpp maintains.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import refuse_reward_model
from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.gguf.gguf_families import (
    TEXT_MODEL_PREFIX,
    GGUFModelDescription,
    add_parameters,
    rope_factors,
    rope_row_permutation,
)
from mlx_dpo.export.gguf.gguf_tensors import TensorSource, write_gguf_file
from mlx_dpo.export.gguf.gguf_tokenizer import add_tokenizer
from mlx_dpo.export.lora_factors import alternatives_hint, load_adapter_factors, reject_layers
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

GGUFMatrixType = Literal["f32", "f16", "q8_0"]
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}


def write_gguf(
    model: str | Path, file: str | Path, matrix_type: GGUFMatrixType = "f16", *, progress: Progress = NO_PROGRESS
) -> Path:
    """Write a model with its tokenizer and chat template as one GGUF file.

    Matrices become float32, float16, or Q8_0 (blocks of 32 8-bit numbers with a float16 scale); norms and biases
    float32.
    Quantized weights are dequantized first.

    Args:
        model: folder or Hub id of an mlx-lm model whose type is in `GGUF_FAMILIES`.
        file: the new file.
        matrix_type: type of the matrices.
        progress: receives the number of tensors written so far.

    Returns:
        The file.

    Raises:
        UserError: an argument is wrong, or llama.cpp can't run the model exactly.
    """
    gguf = import_gguf()
    loaded = load_model(str(model), lazy=True)
    description = GGUFModelDescription.from_loaded_model(loaded)
    tensors = _model_tensors(loaded.model, description)
    vocab_size = tensors["token_embd.weight"].shape[0]
    writer = gguf.GGUFWriter(None, description.family.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(model).resolve().name)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[matrix_type]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_parameters(writer, description)
    writer.add_vocab_size(vocab_size)
    add_tokenizer(writer, load_tokenizer(str(model)), vocab_size, description.where)
    del loaded  # otherwise its weights would stay in memory after they are read
    progress.begin(f"Writing {file}", "tensors")
    write_gguf_file(writer, file, tensors, matrix_type, description.where, progress)
    return Path(file)


def write_gguf_lora(model: str | Path, adapter_path: str | Path, file: str | Path) -> Path:
    """Write an adapter in float32 as a GGUF file for llama.cpp's --lora.

    Args:
        model: folder or Hub id of the model that the adapter was trained on.
        adapter_path: the adapter's folder.
        file: the new file.

    Returns:
        The file.

    Raises:
        UserError: an argument is wrong, or the format can't hold the adapter.
    """
    gguf = import_gguf()
    where = Where(str(adapter_path))
    hint = "`mlx-dpo export --format peft` writes it for transformers, head included."
    refuse_reward_model(adapter_path, "and llama.cpp's adapters have no place for its head", hint)
    adapter = load_adapter_factors(str(model), adapter_path, GGUFModelDescription.from_loaded_model)
    if adapter.spec.fine_tune_type == "dora":
        hint = "Fuse it into the model, and export the model with --format gguf."
        raise UserError("llama.cpp supports LoRA adapters only, but this one is DoRA", where=where, hint=hint)
    description = GGUFModelDescription.from_loaded_model(adapter.loaded_model)
    names = _gguf_names([f"{name}.weight" for name in adapter.layers], description, adapter_path)
    tensors = {}
    for layer, factors in adapter.layers.items():
        name = f"{layer}.weight"
        permutation = rope_row_permutation(name, factors.lora_b.shape[1], description)
        tensors[f"{names[name]}.lora_a"] = TensorSource.from_array(factors.lora_a.T)
        tensors[f"{names[name]}.lora_b"] = replace(
            TensorSource.from_array(factors.lora_b.T), row_permutation=permutation
        )
    writer = gguf.GGUFWriter(None, description.family.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.spec.scale * adapter.spec.rank)
    write_gguf_file(writer, file, tensors, "f32", where)
    return Path(file)


def import_gguf() -> Any:
    """Import the package `gguf`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        hint = "pip install 'mlx-dpo[gguf]'"
        raise UserError("writing GGUF files needs the package gguf, which is not installed", hint=hint) from None
    return gguf


def _model_tensors(model: nn.Module, description: GGUFModelDescription) -> dict[str, TensorSource]:
    """All weights of a model by llama.cpp's names, in its order and with its conventions."""
    sources: dict[str, TensorSource] = {}
    for name, module in reversed(model.named_modules()):  # named_modules lists the last layer first
        arrays = {key: value for key, value in module.items() if isinstance(value, mx.array)}
        if "scales" in arrays:
            sources[f"{name}.weight"] = TensorSource.from_quantized(module)
            arrays = {key: arrays[key] for key in arrays.keys() & {"bias"}}
        sources |= {
            f"{name}.{key}": TensorSource.from_array(value) for key, value in arrays.items() if not key.startswith("_")
        }
    names = _gguf_names(sources, description)
    tensors = {
        names[name]: replace(
            source,
            row_permutation=rope_row_permutation(name, source.shape[0], description),
            offset=float(description.family.adds_one_to_norms and name.endswith("norm.weight")),
        )
        for name, source in sources.items()
    }
    if (factors := rope_factors(model, description)) is not None:
        tensors["rope_freqs.weight"] = TensorSource.from_array(factors)
    return tensors


def _gguf_names(
    names: Collection[str], description: GGUFModelDescription, adapter_path: str | Path | None = None
) -> dict[str, str]:
    """llama.cpp's names of tensors, of a model or an adapter. Raises `UserError` if it has none for some."""
    gguf = import_gguf()
    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == description.family.architecture)
    table = gguf.get_tensor_name_map(architecture, description.model_args.num_hidden_layers)
    suffixes = (".weight", ".bias")
    gguf_names = {name: table.get_name(name.removeprefix(TEXT_MODEL_PREFIX), try_suffixes=suffixes) for name in names}
    reason = f"llama.cpp's {description.family.architecture} has no place for"
    unnamed = [name for name, new in gguf_names.items() if new is None]
    hint = None
    if adapter_path is not None:
        hint = alternatives_hint(adapter_path, (name.removesuffix(".weight") for name in set(names) - set(unnamed)))
    reject_layers(unnamed, reason, description.where, hint)
    return gguf_names
