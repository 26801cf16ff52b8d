"""Rows of a file, parsed one after the other as they are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mlx_dpo.data.data_warnings import RowWarning
from mlx_dpo.data.examples import Example, Pair
from mlx_dpo.data.files.json_lines import has_duplicate_keys, parse_json_line
from mlx_dpo.data.files.local_files import RowStream
from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.data.row_parsing import RowParser, add_warnings, parse_examples
from mlx_dpo.data.row_warnings import DUPLICATE_KEYS
from mlx_dpo.errors import RowError, Where

OnBadRow = Callable[[RowError], None]
OnProgress = Callable[[float], None]


class ParsedRow(NamedTuple):
    """A row.

    Attributes:
        where: its location.
        value: its JSON value.
        examples: the examples in it.
        line: its JSON.
        offset: the byte at which that begins, in a file of plain JSON lines.
    """

    where: Where
    value: Any
    examples: Sequence[Example]
    line: bytes
    offset: int


def read_rows(
    path: str,
    on_bad_row: OnBadRow | None = None,
    on_progress: OnProgress | None = None,
    parse: RowParser = parse_examples,
) -> Iterator[ParsedRow]:
    """Yield the valid rows of a file in order.

    Args:
        path: a file, a Hub dataset, or `-` for stdin.
        on_bad_row: called with the error of each invalid row, which is then skipped; without it the first one raises.
        on_progress: called at most every quarter of a second with the fraction that is read, and at the end with 1.
        parse: gives the examples of a row.

    Raises:
        RowError: a row is invalid, or of another kind than the first (pair or single completion).
        UserError: the file can't be read at all.
    """
    with open_rows(path) as stream:
        yield from parse_rows(stream, on_bad_row, on_progress, parse)


def parse_rows(
    stream: RowStream,
    on_bad_row: OnBadRow | None = None,
    on_progress: OnProgress | None = None,
    parse: RowParser = parse_examples,
) -> Iterator[ParsedRow]:
    """Yield the valid rows of an open stream; arguments and errors as for `read_rows`."""
    kind_check, last_progress = ExampleKindCheck(), time.monotonic()
    while True:
        try:
            number, offset, line = next(stream.lines)
            where = Where(stream.name, number)
            value, examples = parse_line(line, where, parse)
            kind_check.check(examples, where)
        except StopIteration:
            break
        except RowError as error:
            if on_bad_row is None:
                raise
            on_bad_row(error)
            continue  # the lines of an array end with its first error
        yield ParsedRow(where, value, examples, line, offset)
        if on_progress and time.monotonic() - last_progress > 0.25:
            last_progress = time.monotonic()
            on_progress(stream.fraction_read())
    if on_progress:
        on_progress(1.0)


def parse_line(line: bytes, where: Where, parse: RowParser) -> tuple[Any, Sequence[Example]]:
    """Return the JSON value of a line and the examples in it.

    Args:
        line: UTF-8.
        where: its location, for messages.
        parse: makes the examples.

    Raises:
        RowError: the line is not valid JSON, or not a valid row.
    """
    value = parse_json_line(line, where)
    examples = parse(value, where)
    if has_duplicate_keys(line, value):
        examples = add_warnings(list(examples), [RowWarning(DUPLICATE_KEYS)])
    return value, examples


class ExampleKindCheck:
    """Checks that examples are all pairs or all single completions."""

    def __init__(self) -> None:
        self.first: tuple[type[Example], Where] | None = None

    def check(self, examples: Sequence[Example], where: Where) -> Sequence[Example]:
        """The examples of a row. Raises `RowError` if they are of another kind than those of the first row."""
        if not examples:
            return examples
        kind, first = self.first = self.first or (type(examples[0]), where)
        if not isinstance(examples[0], kind):
            names = ["a single completion", "a pair"]
            this, other = names if kind is Pair else reversed(names)
            hint = "Put pairs into one file and single completions into another."
            message = f"is {this}, where line {first.line} holds {other}"
            raise RowError(message, kind="mixed", where=where, hint=hint)
        return examples
