"""What a person changes in a row: its texts, or which completion is the better one."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from typing import Any

from mlx_dpo.data.files.json_lines import parse_json_line
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import RowError, UserError, Where
from mlx_dpo.utils.appended_rows import to_json_bytes
from mlx_dpo.web.verdicts import EDITED_COLUMN

EDITABLE_COLUMNS = ("prompt", "chosen", "rejected", "completions", "completion", "label")
WHOLE_ROW = "row"


def editable_fields(line: bytes) -> list[dict[str, Any]]:
    """The fields of an editor for a row: its texts as they are, other values as JSON.

    Args:
        line: the row's line.

    Returns:
        For each field its `name`, `text`, and `is_json`. A row in a format with other columns is one field, `row`; so
        is a line that is not a JSON object, as text.
    """
    row = _read_object(line)
    if row is None:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        return [{"name": WHOLE_ROW, "text": text, "is_json": True}]
    names = [name for name in EDITABLE_COLUMNS if row.get(name) is not None]
    if not {"chosen", "rejected", "completion", "completions"} & set(names):
        return [_field(WHOLE_ROW, row)]
    return [_field(name, row[name]) for name in names]


def edit_line(line: bytes, edits: Any) -> bytes:
    """A line with other values, checked to be a valid row.

    Args:
        line: the line.
        edits: by name of a field, an object with `text` and `is_json`.

    Returns:
        The new line; the line itself if nothing has changed.

    Raises:
        UserError: a value is not JSON, or the row is not valid.
    """
    if not isinstance(edits, dict) or not edits:
        raise UserError("must be an object with the fields that are edited", field="fields")
    values = {name: _read_field(name, edit) for name, edit in edits.items()}
    before = _read_object(line)
    if WHOLE_ROW in values:
        row = values[WHOLE_ROW]
    elif before is None or set(values) - set(EDITABLE_COLUMNS):
        raise UserError("is not a field of this row", field=next(iter(values)))
    else:
        row = {**before, **values}
    if row == before and before is not None:
        return line
    if isinstance(row, dict) and before is not None and WHOLE_ROW not in values:
        row = row if _only_label(row, before) else {**row, EDITED_COLUMN: True}
    return _checked_line(row, line)


def swap_line(line: bytes) -> bytes:
    """A line with chosen and rejected exchanged, or with the other label; scores go with their completions.

    Raises:
        UserError: the row has no two completions to exchange, nor a label.
    """
    row = _read_object(line)
    if row is not None and isinstance(row.get("label"), bool) and "completion" in row:
        return _checked_line({**row, "label": not row["label"]}, line)
    if row is None or "chosen" not in row or "rejected" not in row:
        raise UserError("the row has no `chosen` and `rejected` that could be exchanged")
    if any(_is_several(row[name]) for name in ("chosen", "rejected")):
        raise UserError("the row has several completions on one side: edit it as JSON")
    exchanged = {name: row[other] for name in row if (other := _counterpart(name)) in row}
    return _checked_line({**row, **exchanged}, line)


def can_swap(line: bytes) -> bool:
    """Whether `swap_line` applies to a line."""
    try:
        swap_line(line)
    except UserError:
        return False
    return True


def _counterpart(name: str) -> str:
    """The column that is about the rejected completion where this is about the chosen one, or the other way round."""
    if "chosen" in name:
        return name.replace("chosen", "rejected")
    return name.replace("rejected", "chosen")


def _is_several(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, (str, list)) for item in value)


def _only_label(row: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return {**row, "label": None} == {**before, "label": None}


def _checked_line(row: Any, line: bytes) -> bytes:
    try:
        parse_examples(row, Where(""))
    except RowError as error:
        error.where = None
        raise UserError(str(error)) from None
    ending = line[len(line.rstrip(b"\r\n")) :]
    return to_json_bytes(row) + ending


def _read_object(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json_line(line.removeprefix(codecs.BOM_UTF8), Where(""))
    except RowError:
        return None
    return row if isinstance(row, dict) else None


def _field(name: str, value: Any) -> dict[str, Any]:
    is_text = isinstance(value, str)
    return {
        "name": name,
        "text": value if is_text else json.dumps(value, ensure_ascii=False, indent=2),
        "is_json": not is_text,
    }


def _read_field(name: str, edit: Any) -> Any:
    text = edit.get("text") if isinstance(edit, dict) else None
    if not isinstance(text, str):
        raise UserError("must have a text", field=name)
    if not edit.get("is_json"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise UserError(f"is not JSON: {reason}", field=name) from None
