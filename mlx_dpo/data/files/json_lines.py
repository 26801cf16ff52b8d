"""Lines of JSON: numbered, and parsed with errors that name the line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

from mlx_dpo.errors import RowError, Where


def numbered_lines(stream: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line) for every line that is not blank; a byte order mark is left out."""
    offset = 0
    for number, line in enumerate(stream, 1):
        start, offset = offset, offset + len(line)
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            line, start = line.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
        if not line.isspace():
            yield number, start, line


def parse_json_line(line: bytes, where: Where) -> Any:
    """The JSON value of a line. Raises `RowError`."""
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8_error(error, where) from None
    except (ValueError, RecursionError) as error:
        raise bad_json_error(error, where, error.pos + 1 if isinstance(error, json.JSONDecodeError) else None) from None


def has_duplicate_keys(line: bytes, value: Any) -> bool:
    """Whether an object in a line of JSON has the same key twice.

    Args:
        line: the line.
        value: what `parse_json_line` made of it, with the last value of such a key.
    """
    # first the colons after quotes are counted, which is much faster than parsing again
    num_keys, num_colons = _count_keys(value), line.count(b'":')
    if num_keys == num_colons or num_keys == num_colons - line.count(b'\\":'):  # without those inside texts
        return False
    duplicates: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            duplicates.extend(key for key, _ in pairs)
        return keys

    json.loads(line, object_pairs_hook=collect)
    return bool(duplicates)


def _count_keys(value: Any) -> int:
    """The number of keys in all objects of a JSON value."""
    count, pending = 0, [value] if isinstance(value, (dict, list)) else []
    items: Iterable[Any]
    while pending:
        item = pending.pop()
        items = item
        if item.__class__ is dict:
            count += len(item)
            items = item.values()
        pending += [inner for inner in items if inner.__class__ is dict or inner.__class__ is list]
    return count


def bad_json_error(error: Exception | str, where: Where, column: int | None = None) -> RowError:
    """A `RowError` for text that is not JSON.

    Args:
        error: the parser's exception, or what is wrong.
        where: the line.
        column: the column in it, from 1.
    """
    if isinstance(error, RecursionError):
        return RowError("not valid JSON: nested too deep", kind="bad JSON", where=where)
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
    place = f" (column {column})" if column else ""
    hint = "Each line must be one JSON object, or the whole file one JSON array of them."
    return RowError(f"not valid JSON: {reason}{place}", kind="bad JSON", where=where, hint=hint)


def not_utf8_error(error: UnicodeDecodeError, where: Where) -> RowError:
    """A `RowError` for bytes that are not UTF-8."""
    message = f"not UTF-8 text: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
    return RowError(message, kind="not UTF-8", where=where, hint="Save the file as UTF-8.")
