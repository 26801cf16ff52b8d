"""Errors about the columns of a row that is in no format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.json_values import printable
from mlx_dpo.data.row_fields import has_columns
from mlx_dpo.errors import RowError
from mlx_dpo.utils.formatting import closest

_EXPECTED_COLUMNS = (
    *("prompt", "chosen", "rejected", "completions", "scores", "rankings"),
    *("conversations", "messages", "completion", "label"),
)
_EXPECTED = "prompt, chosen and rejected; or chosen and rejected conversations; or prompt, completions and scores"
_NAME_THEM = (
    "Columns of other names are given by --prompt-column, --chosen-column and --rejected-column, or by "
    "--completion-column and --label-column"
)
_MAX_LISTED = 12


def no_format_error(row: Row) -> RowError:
    """Why a row is in no format."""
    for present, missing in (("rejected", "chosen"), ("chosen", "rejected")):
        if has_columns(row, present):
            return missing_column(row, missing)
    error = missing_column(row, "chosen")
    error.kind, error.field, error.message = "unknown shape", None, "no preference pair in this row's keys"
    return error


def missing_column(row: Row, column: str) -> RowError:
    """An error about a column that is absent or null, with the columns there are and a likely typo."""
    if column in row:
        return RowError("is null", kind="missing key", field=column)
    names = [str(name) for name in row]
    listed = ", ".join(printable(name, 30) for name in names[:_MAX_LISTED])
    listed += ", ..." if len(names) > _MAX_LISTED else ""
    hint = f"{_typo(names)}Keys here: {listed or 'none'}. Expected: {_EXPECTED}."
    if names:
        nested = [printable(path, 40) for path in _nested_texts(row)]
        example = f" (inside an object as {nested[0]})" if nested else ""
        hint += f"\n{_NAME_THEM}{example}."
    return RowError("is missing", kind="missing key", field=column, hint=hint)


def _typo(names: list[str]) -> str:
    for name in names[:100]:
        if name not in _EXPECTED_COLUMNS and (near := closest(name.lower()[:40], _EXPECTED_COLUMNS, cutoff=0.75)):
            return f"Did you mean `{near}` by `{printable(name, 40)}`? "
    return ""


def _nested_texts(row: Row) -> Iterator[str]:
    """Dotted paths of the texts and lists inside a row's objects."""
    for column, value in row.items():
        if isinstance(value, dict):
            yield from (f"{column}.{key}" for key, item in value.items() if _holds_text(item))


def _holds_text(value: Any) -> bool:
    return isinstance(value, (str, list)) and bool(value)
