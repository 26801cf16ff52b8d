"""Objectives of the user's own: a function in a Python file, named as path/to/file.py:name."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.errors import UserError, Where
from mlx_dpo.objectives.objective import Objective
from mlx_dpo.objectives.pairs import PairLogps

HINT = "A custom objective is `def name(pairs, *, beta=0.1)` in that file, and gives one loss a pair; see the README."


def load_objective(text: str) -> Objective:
    """The objective `path/to/file.py:name`, tried on two pairs. Raises `UserError` where it can't be used."""
    path, _, name = text.rpartition(":")
    where = Where(path)
    found = getattr(_module(path, where), name, None)
    objective = found if isinstance(found, Objective) else Objective(found) if callable(found) else None
    if objective is None:
        raise UserError(f"there is no function {name!r} in the file", where=where, field="loss", hint=HINT)
    for argument, default in objective.arguments.items():
        if default is inspect.Parameter.empty:
            raise UserError(f"{name}: {argument!r} has no default", where=where, field="loss", hint=HINT)
    _try(objective, where)
    return objective


def _module(path: str, where: Where) -> Any:
    if not Path(path).is_file():
        raise UserError("there is no such file", where=where, field="loss", hint=HINT)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the file can't be run: {type(error).__name__}: {error}", where=where, field="loss") from error
    return module


def _try(objective: Objective, where: Where) -> None:
    """Two made-up pairs, so that a mistake shows before a model is loaded."""
    two = mx.array([0.5, -0.5])
    pairs = PairLogps(two, -two, two - 20, two - 30, mx.array([4.0, 1.0]), mx.array([3.0, 9.0]), 2.5)
    try:
        losses = objective.losses(pairs, **objective.arguments)
    except Exception as error:
        message = f"{objective.name} fails: {type(error).__name__}: {error}"
        raise UserError(message, where=where, field="loss", hint=HINT) from error
    if not isinstance(losses, mx.array) or losses.shape != (2,):
        got = list(losses.shape) if isinstance(losses, mx.array) else type(losses).__name__
        message = f"{objective.name} gives {got} for two pairs, not one loss a pair, an mx.array of [2]"
        raise UserError(message, where=where, field="loss", hint=HINT)
