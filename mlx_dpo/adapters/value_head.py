"""The value head of a policy that PPO trains: a module of the model beside mlx-lm's own, and its file.

The file lies beside the adapter's own, so that training can be continued from the folder; nothing else needs it.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import read_safetensors
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.errors import UserError, Where

VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_HEAD_TENSORS = ("value_head.bias", "value_head.weight")  # parameters in the model, and tensors in the file


def attach_value_head(model: nn.Module, tensors: Tensors) -> None:
    """Add a trainable linear head to a model.

    Args:
        model: the mlx-lm model, changed in place.
        tensors: bias [1] and weight [1, hidden], by `VALUE_HEAD_TENSORS`.
    """
    bias, weight = (tensors[name].astype(mx.float32) for name in VALUE_HEAD_TENSORS)
    head = nn.Linear(weight.shape[1], 1)
    head.bias, head.weight = bias, weight
    model.value_head = head


def initial_value_head(hidden_size: int) -> Tensors:
    """The tensors of a new head: zeros, so that all values are 0 at first and don't move the body."""
    return dict(zip(VALUE_HEAD_TENSORS, (mx.zeros((1,)), mx.zeros((1, hidden_size))), strict=True))


def read_value_head(folder: str | Path) -> Tensors:
    """Read an adapter folder's value head; empty if it has none.

    Raises:
        UserError: its file is damaged.
    """
    file = Path(folder) / VALUE_HEAD_FILE
    if not file.is_file():
        return {}
    tensors = read_safetensors(file)
    if sorted(tensors) != sorted(VALUE_HEAD_TENSORS):
        raise UserError(f"the file is damaged: it has no {VALUE_HEAD_TENSORS[1]}", where=Where(str(file)))
    return tensors
