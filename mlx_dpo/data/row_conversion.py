"""Rows of any accepted shape rewritten as the canonical one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

from mlx_dpo.data.column_mapping import with_renamed_columns
from mlx_dpo.data.files.row_output import open_output
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.data.row_reading import OnProgress, read_rows
from mlx_dpo.errors import RowError, UserError, Where


def convert_rows(
    source: str,
    out: str,
    *,
    skip_bad: bool = False,
    columns: Mapping[str, str] = MappingProxyType({}),
    progress: OnProgress | None = None,
) -> tuple[int, int]:
    """Write the pairs of a file as JSON lines: {"prompt", "chosen", "rejected"} (+ "tools", "chat_template_kwargs").

    Args:
        source: a file of rows, or `-` for stdin.
        out: the new file, gzip-compressed if its name ends in .gz, or `-` for stdout. It is written atomically.
        skip_bad: leave bad rows out instead of raising at the first.
        columns: names of the rows' columns; see `with_renamed_columns`.
        progress: receives the bytes read so far.

    Returns:
        How many pairs were written, and how many rows were left out.

    Raises:
        UserError: the file can't be read or holds no pairs; a `RowError` for a bad row.
    """
    bad: list[None] = []
    on_problem: Callable[[RowError], None] | None = (lambda error: bad.append(None)) if skip_bad else None
    pairs = 0
    with open_output(out, source) as write:
        for row in read_rows(source, on_problem, progress, with_renamed_columns(columns, parse_examples)):
            for pair in row.examples:
                write(json.dumps(pair.to_row(), ensure_ascii=False).encode() + b"\n")
                pairs += 1
        if not pairs:
            raise UserError("holds no pairs", where=Where(source), hint="`mlx-dpo data check` says why.")
    return pairs, len(bad)
