"""Tensors of a GGUF file, converted and written one at a time.

A GGUF file lists the names and shapes of its tensors before their data, so each tensor is first described by a
`TensorSource` and read when it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.atomic_write import write_new
from mlx_dpo.utils.progress import NO_PROGRESS, Progress

CHUNK_ELEMENTS = 2**22  # elements converted at a time
Q8_0_BLOCK = 32  # elements; matrices whose rows are no multiple of it stay float16


@dataclass(frozen=True)
class TensorSource:
    """A tensor that is read when it is written.

    Attributes:
        shape: its shape, dequantized.
        read_rows: takes a slice or an array of row indices, returns these rows in float32.
        row_permutation: row indices in the order they are written; None for the order they are in.
        offset: added to every element.
    """

    shape: tuple[int, ...]
    read_rows: Callable[[Any], mx.array]
    row_permutation: np.ndarray | None = None
    offset: float = 0.0

    @classmethod
    def from_array(cls, tensor: mx.array) -> TensorSource:
        """A tensor that is not quantized."""
        return cls(tensor.shape, lambda rows: tensor[rows].astype(mx.float32))

    @classmethod
    def from_quantized(cls, module: nn.Module) -> TensorSource:
        """The weight of a quantized layer, dequantized in float32."""
        weight, scales, biases = module["weight"], module["scales"], module.get("biases")
        options = {"bits": module.bits, "group_size": module.group_size, "mode": module.mode}
        options["global_scale"] = module.get("global_scale")

        def read_rows(rows: Any) -> mx.array:
            if biases is None:
                return mx.dequantize(weight[rows], scales[rows], dtype=mx.float32, **options)
            groups = (scales[rows].astype(mx.float32), biases[rows].astype(mx.float32))  # no rounding to bfloat16
            return mx.dequantize(weight[rows], *groups, **options)

        return cls((weight.shape[0], weight.shape[1] * 32 // module.bits), read_rows)

    def chunks(self) -> Iterator[np.ndarray]:
        """Its rows in float32, at most `CHUNK_ELEMENTS` elements or one row at a time."""
        step = max(1, CHUNK_ELEMENTS * self.shape[0] // int(np.prod(self.shape)))
        for start in range(0, self.shape[0], step):
            rows: Any = slice(start, start + step)
            if self.row_permutation is not None:
                rows = mx.array(self.row_permutation[rows])
            yield np.array(self.read_rows(rows) + self.offset)


def write_gguf_file(
    writer: Any,
    file: str | Path,
    tensors: dict[str, TensorSource],
    matrix_type: str,
    where: Where,
    progress: Progress = NO_PROGRESS,
) -> None:
    """Write a file that appears once it is complete.

    Args:
        writer: a gguf.GGUFWriter with all key-value pairs.
        file: the new file.
        tensors: by llama.cpp's names; empty afterwards, so that each tensor is freed once it is written.
        matrix_type: of matrices: f32, f16 or q8_0.
        where: the model or adapter, for messages.
        progress: receives the number of tensors written so far.

    Raises:
        UserError: the file exists or can't be written, or a tensor has values that its type can't represent.
    """
    types = {name: _ggml_type(tensor.shape, matrix_type) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        shape, dtype = _stored_layout(tensor.shape, types[name])
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=types[name])
    with write_new(file) as partial:
        try:
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for number, name in enumerate(names := list(tensors)):
                progress.update(number, len(names))
                chunks = [_encode(chunk, types[name], name, where) for chunk in tensors.pop(name).chunks()]
                writer.write_tensor_data(np.concatenate(chunks))
                mx.clear_cache()
        finally:
            writer.close()


def _ggml_type(shape: tuple[int, ...], matrix_type: str) -> Any:
    """The gguf.GGMLQuantizationType of a tensor: vectors are always float32."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if matrix_type == "q8_0" and shape[-1] % Q8_0_BLOCK:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[matrix_type.upper()]


def _stored_layout(shape: tuple[int, ...], ggml_type: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a tensor's data in the file."""
    from gguf import GGMLQuantizationType, quants

    if ggml_type is GGMLQuantizationType.Q8_0:
        return quants.quant_shape_to_byte_shape(shape, ggml_type), np.dtype(np.uint8)
    return shape, np.dtype(np.float32 if ggml_type is GGMLQuantizationType.F32 else np.float16)


def _encode(chunk: np.ndarray, ggml_type: Any, name: str, where: Where) -> np.ndarray:
    from gguf import quants

    with np.errstate(over="ignore"):
        encoded = quants.quantize(chunk, ggml_type)
    if encoded.dtype.kind == "f" and not np.isfinite(encoded).all():
        hint = "Use q8_0 for values beyond float16's range; NaN can't be written at all."
        raise UserError(f"{name} has values that are not finite as {ggml_type.name}", where=where, hint=hint)
    return encoded
