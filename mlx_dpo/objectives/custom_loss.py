"""A user's own loss: a function in a Python file, given as path/to/file.py:name."""

from __future__ import annotations

import inspect

import mlx.core as mx

from mlx_dpo.errors import UserError, Where
from mlx_dpo.objectives.loss_function import LossFunction, declared_loss
from mlx_dpo.objectives.loss_inputs import example_pairs
from mlx_dpo.utils.user_code import load_from_file

HINT = (
    "A custom loss is `def name(pairs, *, beta=0.1)` in that file, and returns one loss per pair; see docs/losses.md."
)


def load_custom_loss(text: str) -> LossFunction:
    """Load `path/to/file.py:name` and try it on two pairs, so that a mistake shows before a model is loaded.

    Raises:
        UserError: it can't be used.
    """
    function, where = load_from_file(text, field="loss", hint=HINT)
    if not callable(function):
        name = text.rpartition(":")[2]
        raise UserError(f"there is no function {name!r} in the file", where=where, field="loss", hint=HINT)
    loss = declared_loss(function) or LossFunction(function)
    for setting, default in loss.keyword_defaults.items():
        if default is inspect.Parameter.empty:
            raise UserError(f"{loss.name}: {setting!r} has no default", where=where, field="loss", hint=HINT)
    _try(loss, where)
    return loss


def _try(loss: LossFunction, where: Where) -> None:
    pairs = example_pairs()
    try:
        losses = loss.function(pairs, **loss.keyword_defaults)
    except Exception as error:
        message = f"{loss.name} fails: {type(error).__name__}: {error}"
        raise UserError(message, where=where, field="loss", hint=HINT) from error
    if not isinstance(losses, mx.array) or losses.shape != (2,):
        returned = list(losses.shape) if isinstance(losses, mx.array) else type(losses).__name__
        message = f"{loss.name} returns {returned} for two pairs, not one loss per pair, an mx.array of [2]"
        raise UserError(message, where=where, field="loss", hint=HINT)
