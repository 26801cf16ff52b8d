"""Functions of the user's own, in a Python file, named as path/to/file.py:name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where


def named_in_file(text: str, *, field: str, hint: str) -> tuple[Any, Where]:
    """What `path/to/file.py:name` names, None where the file has nothing of that name; and the place of the file.

    Raises `UserError`, about the knob `field`, where the file can't be run.
    """
    path, _, name = text.rpartition(":")
    where = Where(path)
    if not Path(path).is_file():
        raise UserError("there is no such file", where=where, field=field, hint=hint)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        message = f"the file can't be run: {type(error).__name__}: {error}"
        raise UserError(message, where=where, field=field) from error
    return getattr(module, name, None), where
