"""CSV and TSV files as lines of JSON: the first row names the columns, and an empty cell is null."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from typing import IO

from mlx_dpo.data.json_values import printable
from mlx_dpo.errors import RowError, UserError, Where

_MAX_CELL = 1 << 28  # characters
_DELIMITERS = {"\t": "a tab", ",": "a comma", ";": "a semicolon"}


class TableLines:
    """The rows of a CSV or TSV file as (line number from 1, 0, JSON), read one at a time.

    An error in a row does not end the iteration.
    """

    def __init__(self, stream: IO[bytes], name: str) -> None:
        """Read the header.

        Args:
            stream: the file's bytes, from the start.
            name: what errors call it.

        Raises:
            UserError: there is no header, or it names a column twice.
        """
        self._name, self._next_line = name, 1
        csv.field_size_limit(_MAX_CELL)
        # bytes that are not UTF-8 come as lone surrogates, so that only their row is refused
        lines = iter(io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=""))
        first = next(lines, "")
        self._delimiter = _find_delimiter(first)
        self._reader = csv.reader(itertools.chain([first], lines), delimiter=self._delimiter, strict=True)
        try:
            self._columns = [column.strip() for column in next(self._reader, [])]
        except csv.Error as error:
            raise UserError(f"the header of the table can't be read: {error}", where=Where(name, 1)) from None
        self._next_line = self._reader.line_num + 1
        named = list(filter(None, self._columns))
        twice = sorted({column for column in named if named.count(column) > 1})
        if twice:
            message = f"the header names a column twice: {', '.join(map(printable, twice))}"
            raise UserError(message, where=Where(name, 1))

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        return self

    def __next__(self) -> tuple[int, int, bytes]:
        """Raises `RowError` for a row that can't be read; the rows after it can."""
        while True:
            number = self._next_line
            try:
                cells = next(self._reader)
            except csv.Error as error:
                raise self._error(f"not a valid row of the table: {error}", number) from None
            finally:
                self._next_line = self._reader.line_num + 1
            if cells:
                return number, 0, self._row(cells, number)

    def _row(self, cells: list[str], number: int) -> bytes:
        if len(cells) != len(self._columns):
            raise self._error(f"has {len(cells)} cells, where the header has {len(self._columns)}", number)
        # a column without a name is the row numbers that pandas writes
        row = {column: cell or None for column, cell in zip(self._columns, cells, strict=True) if column}
        try:
            return json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            hint = "Save the file as UTF-8."
            raise RowError("not UTF-8 text", kind="not UTF-8", where=Where(self._name, number), hint=hint) from None

    def _error(self, message: str, number: int) -> RowError:
        delimiter = _DELIMITERS[self._delimiter]
        hint = f'Text with {delimiter}, a quote or a line break must be in "quotes", and a quote in it is doubled.'
        return RowError(message, kind="bad table", where=Where(self._name, number), hint=hint)


def is_table_name(name: str) -> bool:
    """Whether a file is a table, by its name."""
    return name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def _find_delimiter(header: str) -> str:
    """What parts most columns of the header, outside quotes."""
    outside = "".join(header.split('"')[::2])
    return max(_DELIMITERS, key=outside.count) if any(map(outside.count, _DELIMITERS)) else ","
