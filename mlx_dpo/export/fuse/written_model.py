"""Check a fused model's folder: mlx-lm loads it, with the weights that were written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.errors import UserError
from mlx_dpo.forward.model_loading import load_model
from mlx_dpo.utils.tensor_names import block_prefix


def require_same_when_loaded(folder: Path, merged: Iterable[str]) -> None:
    """Check that mlx-lm does not change merged layers as it loads them, as some model types do with a float head.

    Of the blocks, the first and the last are compared: a type treats all alike. One layer at a time is in memory.

    Args:
        folder: the model's folder.
        merged: names of the layers that were merged or dequantized.

    Raises:
        UserError: it can't be loaded, or a loaded layer has other weights.
    """
    loaded = load_model(str(folder), lazy=True)
    checked = _outside_and_outer_blocks(merged)
    layers = {name: module for name, module in loaded.model.named_modules() if name in checked}
    loaded.model.clear()  # so that a layer is freed once it is compared
    written = {
        name: tensor for file in folder.glob("model*.safetensors") for name, tensor in _unread_tensors(file).items()
    }
    for name in checked:
        for part, tensor in tree_flatten(layers.pop(name).parameters()):
            original = written.pop(f"{name}.{part}", None)
            if original is None or not mx.array_equal(original, tensor):
                raise UserError(
                    f"mlx-lm changes {name} as it loads models of type {loaded.config['model_type']!r}, so the fused "
                    "model would differ from the trained one",
                    hint="Use --bits 8, which keeps a layer quantized that no adapter is on; "
                    "and train without this layer, if --lora-keys names it.",
                )


def _unread_tensors(file: Path) -> Tensors:
    """The tensors of a file, which are read when they are used."""
    return cast(Tensors, mx.load(str(file)))


def _outside_and_outer_blocks(names: Iterable[str]) -> list[str]:
    """Names outside of blocks, and those of the first and the last block."""
    names = list(names)
    blocks = sorted({prefix for name in names if (prefix := block_prefix(name))}, key=lambda text: (len(text), text))
    outer = {"", *blocks[:1], *blocks[-1:]}
    return [name for name in names if block_prefix(name) in outer]
