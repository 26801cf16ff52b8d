"""Row formats, one module each; `row_formats` discovers them.

To add a format, add a module here with a subclass of `RowFormat` or of one of its base classes (see there), and a test
in tests/data.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from importlib import import_module
from typing import Any

from mlx_dpo.data.formats.row_format import Row, RowFormat


@functools.cache
def row_formats() -> tuple[RowFormat, ...]:
    """Every row format, in the order in which they are tried."""
    modules = [import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    formats = [cls() for cls in classes if issubclass(cls, RowFormat) and not inspect.isabstract(cls)]
    return tuple(sorted(formats, key=lambda row_format: (row_format.order, type(row_format).__name__)))


def find_row_format(row: Row) -> RowFormat | None:
    """The first row format that matches, or None."""
    columns = tuple([column for column, value in row.items() if value is not None])
    for row_format in _candidates(columns):
        if row_format.matches(row):
            return row_format
    return None


@functools.lru_cache(maxsize=4096)
def _candidates(columns: tuple[Any, ...]) -> tuple[RowFormat, ...]:
    """The formats whose columns are among these."""
    present = frozenset(columns)
    return tuple(f for f in row_formats() if any(present.issuperset(names) for names in f.column_sets))
