"""Objectives of the user's own: a function in a Python file, named as path/to/file.py:name."""

from __future__ import annotations

import inspect

import mlx.core as mx

from mlx_dpo.errors import UserError, Where
from mlx_dpo.objectives.loss_inputs import PairLogps
from mlx_dpo.objectives.objective import LossFunction
from mlx_dpo.utils.user_code import load_from_file

HINT = "A custom objective is `def name(pairs, *, beta=0.1)` in that file, and gives one loss a pair; see the README."


def load_custom_loss(text: str) -> LossFunction:
    """The objective `path/to/file.py:name`, tried on two pairs. Raises `UserError` where it can't be used."""
    found, where = load_from_file(text, field="loss", hint=HINT)
    objective = found if isinstance(found, LossFunction) else LossFunction(found) if callable(found) else None
    if objective is None:
        name = text.rpartition(":")[2]
        raise UserError(f"there is no function {name!r} in the file", where=where, field="loss", hint=HINT)
    for argument, default in objective.keyword_defaults.items():
        if default is inspect.Parameter.empty:
            raise UserError(f"{objective.name}: {argument!r} has no default", where=where, field="loss", hint=HINT)
    _try(objective, where)
    return objective


def _try(objective: LossFunction, where: Where) -> None:
    """Two made-up pairs, so that a mistake shows before a model is loaded."""
    two = mx.array([0.5, -0.5])
    pairs = PairLogps(two, -two, two - 20, two - 30, mx.array([4.0, 1.0]), mx.array([3.0, 9.0]), 2.5)
    try:
        losses = objective.function(pairs, **objective.keyword_defaults)
    except Exception as error:
        message = f"{objective.name} fails: {type(error).__name__}: {error}"
        raise UserError(message, where=where, field="loss", hint=HINT) from error
    if not isinstance(losses, mx.array) or losses.shape != (2,):
        got = list(losses.shape) if isinstance(losses, mx.array) else type(losses).__name__
        message = f"{objective.name} gives {got} for two pairs, not one loss a pair, an mx.array of [2]"
        raise UserError(message, where=where, field="loss", hint=HINT)
