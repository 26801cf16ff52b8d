"""Models and adapters as GGUF files, for llama.cpp and what is built on it.

Everything is written by the `gguf` package, which llama.cpp maintains. A file names its tensors and their shapes before
it holds any, so all are listed first, and each is then read, converted and written by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.errors import UserError, Where
from mlx_dpo.export.gguf.gguf_families import (
    TEXT_MODEL_PREFIX,
    GGUFModelDescription,
    add_parameters,
    rope_factors,
    rope_row_permutation,
)
from mlx_dpo.export.gguf.gguf_tokenizer import add_tokenizer
from mlx_dpo.export.peft.lora_factors import load_adapter_factors, reject_layers
from mlx_dpo.forward.model_loading import load_model, load_tokenizer
from mlx_dpo.utils.atomic_write import write_new

GGUFMatrixType = Literal["f16", "q8_0"]
CHUNK = 2**22  # elements converted at a time
Q8_0_BLOCK = 32  # of Q8_0; rows of another length stay float16


@dataclass(frozen=True)
class TensorSource:
    """One tensor, read when its rows are asked for.

    Attributes:
        shape: as it is once dequantized.
        read: rows of it in float32, for a slice or an array of their numbers.
        order: the numbers of its rows in the order they are written in; None where that is their own.
        plus: added to every element.
    """

    shape: tuple[int, ...]
    read_rows: Callable[[Any], mx.array]
    row_permutation: np.ndarray | None = None
    offset: float = 0.0

    def chunks(self) -> Iterator[np.ndarray]:
        """Its rows in float32, a few million elements at a time."""
        step = max(1, CHUNK * self.shape[0] // int(np.prod(self.shape)))
        for start in range(0, self.shape[0], step):
            which = slice(start, start + step)
            yield np.array(
                self.read_rows(which if self.row_permutation is None else mx.array(self.row_permutation[which]))
                + self.offset
            )


def write_gguf(model: str | Path, file: str | Path, matrix_type: GGUFMatrixType = "f16") -> Path:
    """Write a model with its tokenizer and chat template as one GGUF file.

    Matrices become float16, or Q8_0 (blocks of 32 8-bit numbers with a float16 scale); norms and biases float32.
    Quantized weights are dequantized first.

    Args:
        model: folder or Hub id of an mlx-lm model, of a type in gguf_families.FAMILIES.
        file: the new file.

    Raises:
        UserError: something given is wrong, or llama.cpp can't compute what this model does.
    """
    gguf = import_gguf()
    loaded = load_model(str(model), lazy=True)
    described = GGUFModelDescription.from_loaded_model(loaded)
    weights = _model_weights(loaded.model, described)
    rows = weights["token_embd.weight"].shape[0]
    writer = gguf.GGUFWriter(None, described.family.architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(model).resolve().name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{matrix_type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_parameters(writer, described)
    writer.add_vocab_size(rows)
    add_tokenizer(writer, load_tokenizer(str(model)), rows, described.where)
    del loaded  # its weights would stay in memory once they are read
    _write(writer, file, weights, matrix_type, described.where)
    return Path(file)


def write_gguf_lora(model: str | Path, adapter_path: str | Path, file: str | Path) -> Path:
    """Write an adapter by itself, in float32, as the GGUF file that llama.cpp's --lora takes.

    Raises:
        UserError: something given is wrong, or llama.cpp can't hold it.
    """
    gguf = import_gguf()
    adapter, where = load_adapter_factors(str(model), adapter_path), Where(str(adapter_path))
    if adapter.spec.fine_tune_type == "dora":
        hint = "Fuse it into the model, and write that with --format gguf."
        raise UserError("llama.cpp's adapters are LoRA only, and this is DoRA", where=where, hint=hint)
    described = GGUFModelDescription.from_loaded_model(adapter.loaded_model)
    names = _names([f"{name}.weight" for name in adapter.layers], described)
    weights = {}
    for name, factors in adapter.layers.items():
        weights[f"{names[f'{name}.weight']}.lora_a"] = _plain(factors.lora_a.T)
        order = rope_row_permutation(f"{name}.weight", factors.lora_b.shape[1], described)
        weights[f"{names[f'{name}.weight']}.lora_b"] = replace(_plain(factors.lora_b.T), row_permutation=order)
    writer = gguf.GGUFWriter(None, described.family.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.spec.scale * adapter.spec.rank)
    _write(writer, file, weights, "f32", where)
    return Path(file)


def import_gguf() -> Any:
    """The package that writes the files. Raises `UserError` where it is not installed."""
    try:
        import gguf
    except ImportError:
        hint = "pip install 'mlx-dpo[gguf]'"
        raise UserError("writing GGUF files takes the package gguf, which is not installed", hint=hint) from None
    return gguf


# What is written


def _model_weights(model: nn.Module, described: GGUFModelDescription) -> dict[str, TensorSource]:
    """All weights of a model by llama.cpp's names, in its order and with its conventions."""
    own: dict[str, TensorSource] = {}
    for name, module in reversed(model.named_modules()):  # which names the last first
        tensors = {key: value for key, value in module.items() if isinstance(value, mx.array)}
        if "scales" in tensors:
            own[f"{name}.weight"] = _dequantized(module)
            tensors = {key: tensors[key] for key in tensors.keys() & {"bias"}}
        own |= {f"{name}.{key}": _plain(value) for key, value in tensors.items() if not key.startswith("_")}
    names = _names(own, described)
    weights = {
        names[name]: replace(
            weight,
            row_permutation=rope_row_permutation(name, weight.shape[0], described),
            offset=float(described.family.adds_one_to_norms and name.endswith("norm.weight")),
        )
        for name, weight in own.items()
    }
    if (factors := rope_factors(model, described)) is not None:
        weights["rope_freqs.weight"] = _plain(factors)
    return weights


def _plain(tensor: mx.array) -> TensorSource:
    return TensorSource(tensor.shape, lambda which: tensor[which].astype(mx.float32))


def _dequantized(module: nn.Module) -> TensorSource:
    packed, scales, biases = module["weight"], module["scales"], module.get("biases")
    bits, others = module.bits, {"group_size": module.group_size, "mode": module.mode}
    others["global_scale"] = module.get("global_scale")

    def read(which: Any) -> mx.array:
        if biases is None:
            return mx.dequantize(packed[which], scales[which], bits=bits, dtype=mx.float32, **others)
        of_rows = (scales[which].astype(mx.float32), biases[which].astype(mx.float32))  # nothing rounded to bfloat16
        return mx.dequantize(packed[which], *of_rows, bits=bits, **others)

    return TensorSource((packed.shape[0], packed.shape[1] * 32 // bits), read)


def _names(own: Iterable[str], described: GGUFModelDescription) -> dict[str, str]:
    """llama.cpp's names of tensors. Raises `UserError` naming those it has no place for."""
    gguf = import_gguf()
    architecture = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == described.family.architecture)
    table = gguf.get_tensor_name_map(architecture, described.model_args.num_hidden_layers)
    names = {
        name: table.get_name(name.removeprefix(TEXT_MODEL_PREFIX), try_suffixes=(".weight", ".bias")) for name in own
    }
    why = f"llama.cpp's {described.family.architecture} has no place for"
    reject_layers([name for name, other in names.items() if other is None], why, described.where)
    return names


# How it is written


def _write(writer: Any, file: str | Path, weights: dict[str, TensorSource], kind: str, where: Where) -> None:
    """Write a file aside, tensor by tensor; `weights` is empty afterwards."""
    types = {name: _type(name, weight, kind) for name, weight in weights.items()}
    for name, weight in weights.items():
        shape, dtype = _stored(weight.shape, types[name])
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=types[name])
    with write_new(file) as partial:
        try:
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name in list(weights):
                weight = weights.pop(name)
                parts = [_encoded(part, types[name], name, where) for part in weight.chunks()]
                writer.write_tensor_data(np.concatenate(parts))
                mx.clear_cache()
        finally:
            writer.close()


def _type(name: str, weight: TensorSource, kind: str) -> Any:
    """The gguf.GGMLQuantizationType that llama.cpp expects of such a tensor."""
    from gguf import GGMLQuantizationType

    if len(weight.shape) == 1:
        return GGMLQuantizationType.F32
    if kind == "q8_0" and weight.shape[-1] % Q8_0_BLOCK:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[kind.upper()]


def _stored(shape: tuple[int, ...], kind: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a tensor as it lies in the file."""
    from gguf import GGMLQuantizationType, quants

    if kind is GGMLQuantizationType.Q8_0:
        return quants.quant_shape_to_byte_shape(shape, kind), np.dtype(np.uint8)
    return shape, np.dtype(np.float32 if kind is GGMLQuantizationType.F32 else np.float16)


def _encoded(part: np.ndarray, kind: Any, name: str, where: Where) -> np.ndarray:
    from gguf import quants

    with np.errstate(over="ignore"):
        encoded = quants.quantize(part, kind)
    if encoded.dtype.kind == "f" and not np.isfinite(encoded).all():
        hint = "q8_0 has room for larger numbers; NaN has no place anywhere."
        raise UserError(f"{name} holds numbers that are not finite as {kind.name}", where=where, hint=hint)
    return encoded
