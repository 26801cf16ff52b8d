"""The scalar head of a reward model, a module of the model beside mlx-lm's own, and its file in an adapter folder.

The adapter's own files stay as mlx-lm reads them: the head is in a file beside them, which makes the folder that of a
reward model. A value head, which PPO trains beside the policy, is in another file.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.adapters.adapter_folder import (
    ADAPTER_WEIGHTS_FILE,
    REWARD_HEAD_FILE,
    is_reward_model,
    read_adapter,
    read_safetensors,
)
from mlx_dpo.adapters.spec import Tensors
from mlx_dpo.adapters.value_head import VALUE_HEAD_FILE, VALUE_HEAD_TENSORS, read_value_head
from mlx_dpo.errors import UserError, Where

REWARD_HEAD_WEIGHT = "reward_head.weight"  # its parameter in the model, and its tensor in the file
INITIALIZER_RANGE = 0.02  # standard deviation of the initial weights: the default of transformers' configs


def attach_reward_head(model: nn.Module, weight: mx.array) -> None:
    """Add a trainable linear head without bias to a model.

    Args:
        model: the mlx-lm model, changed in place.
        weight: [1, hidden].
    """
    head = nn.Linear(weight.shape[1], 1, bias=False)
    head.weight = weight.astype(mx.float32)
    model.reward_head = head


def initial_head_weight(hidden_size: int, seed: int) -> mx.array:
    """Draw the weights of a new head, [1, hidden], as transformers does for `score`: normal, `INITIALIZER_RANGE`."""
    return INITIALIZER_RANGE * mx.random.normal((1, hidden_size), key=mx.random.key(seed))


def tensors_by_file(tensors: Tensors) -> dict[str, Tensors]:
    """Split trained tensors by the file of an adapter folder that holds them: first a head's, if there is one."""
    heads = {REWARD_HEAD_FILE: (REWARD_HEAD_WEIGHT,), VALUE_HEAD_FILE: VALUE_HEAD_TENSORS}
    files = {
        file: {name: tensors[name] for name in names} for file, names in heads.items() if set(names) <= tensors.keys()
    }
    in_heads = {name for names in heads.values() for name in names}
    return {**files, ADAPTER_WEIGHTS_FILE: {k: tensor for k, tensor in tensors.items() if k not in in_heads}}


def read_reward_head(folder: str | Path) -> mx.array:
    """Read the weight of an adapter folder's head, [1, hidden].

    Raises:
        UserError: it has none, or its file is damaged.
    """
    if not is_reward_model(folder):
        hint = "`mlx-dpo train --loss reward` leaves one in its run folder."
        raise UserError(f"not a reward model: there is no {REWARD_HEAD_FILE}", where=Where(str(folder)), hint=hint)
    file = Path(folder) / REWARD_HEAD_FILE
    tensors = read_safetensors(file)
    if set(tensors) != {REWARD_HEAD_WEIGHT} or tensors[REWARD_HEAD_WEIGHT].ndim != 2:
        raise UserError(f"the file is damaged: it has no matrix {REWARD_HEAD_WEIGHT}", where=Where(str(file)))
    return tensors[REWARD_HEAD_WEIGHT]


def read_trained_tensors(folder: str | Path) -> Tensors:
    """Read everything that a run trained, by parameter name: the adapter's tensors, and those of its heads, if any.

    Raises:
        UserError: it is not an adapter folder, or is damaged.
    """
    tensors = {**read_adapter(folder)[1], **read_value_head(folder)}
    return {**tensors, REWARD_HEAD_WEIGHT: read_reward_head(folder)} if is_reward_model(folder) else tensors
