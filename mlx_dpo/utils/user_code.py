"""Functions from a user's Python file, given as path/to/file.py:name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where


def load_from_file(spec: str, *, field: str, hint: str) -> tuple[Any, Where]:
    """Run a Python file and look up a name in it.

    Args:
        spec: `path/to/file.py:name`.
        field: the setting whose value it is, for error messages.
        hint: what to do next if the file does not exist.

    Returns:
        The object, or None if the file defines no such name; and the file's location.

    Raises:
        UserError: the file does not exist or can't be run.
    """
    path, _, name = spec.rpartition(":")
    where = Where(path)
    if not Path(path).is_file():
        raise UserError("there is no such file", where=where, field=field, hint=hint)
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert module_spec is not None and module_spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        message = f"the file can't be run: {type(error).__name__}: {error}"
        raise UserError(message, where=where, field=field) from error
    return getattr(module, name, None), where
