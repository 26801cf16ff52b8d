"""Columns under names that the user has given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mlx_dpo.errors import RowError, Where

Row = dict[str, Any]
T = TypeVar("T")


def with_renamed_columns(columns: Mapping[str, str], parse: Callable[[Any, Where], T]) -> Callable[[Any, Where], T]:
    """A row parser for rows whose columns have other names.

    Args:
        columns: for `prompt`, `chosen`, `rejected`, `completion` or `label` the name of the column that holds it; one
            with dots is inside an object (`data.question`).
        parse: the parser of rows with the usual names, such as `parse_pairs`.
    """
    if not columns:
        return parse

    def parse_renamed(row: Any, where: Where) -> T:
        try:
            return parse(rename_columns(row, columns), where)
        except RowError as error:
            error.where = where
            raise

    return parse_renamed


def rename_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """A row with its columns under their usual names. Raises `RowError`, without a location, if one is missing."""
    if not columns or not isinstance(row, dict):
        return row
    renamed = {name: _column_value(row, column) for name, column in columns.items()}
    return {**{key: value for key, value in row.items() if key not in columns.values()}, **renamed}


def _column_value(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            listed = ", ".join(str(key)[:30] for key in list(row)[:12]) or "none"
            hint = f"Columns here: {listed}."
            raise RowError("the column that was named is missing", kind="missing key", field=column, hint=hint)
        value = value[part]
    return value
