"""Rows of any accepted shape rewritten as the canonical one."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO

from mlx_dpo.data.column_mapping import with_renamed_columns
from mlx_dpo.data.files.local_files import expand_path
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.data.row_reading import OnProgress, read_rows
from mlx_dpo.errors import RowError, UserError, Where

Write = Callable[[bytes], object]


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
        out: the new file, packed if its name ends in .gz, or `-` for stdout. It is there whole or not at all.
        skip_bad: leave bad rows out instead of raising at the first.
        columns: names of the rows' columns; see `renaming`.

    Returns: how many pairs were written, and how many rows left out. Raises: `UserError`.
    """
    bad: list[None] = []
    on_problem: Callable[[RowError], None] | None = (lambda error: bad.append(None)) if skip_bad else None
    pairs = 0
    with _stdout() if out == "-" else _atomic_output(out, source) as write:
        for row in read_rows(source, on_problem, progress, with_renamed_columns(columns, parse_examples)):
            for pair in row.examples:
                write(json.dumps(pair.to_row(), ensure_ascii=False).encode() + b"\n")
                pairs += 1
        if not pairs:
            raise UserError("holds no pairs", where=Where(source), hint="`mlx-dpo data check` says why.")
    return pairs, len(bad)


@contextmanager
def _stdout() -> Iterator[Write]:
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        raise UserError("stdout can't be written to")
    try:
        yield stream.write
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python complains again as it ends
        raise UserError("what reads it closed it before all was written", where=Where("stdout")) from None


@contextmanager
def _atomic_output(name: str, source: str) -> Iterator[Write]:
    """Write a temporary file that takes the place of `name` at the end; on failure it is removed."""
    if "\0" in name:
        raise UserError("a file's name can't hold a NUL", where=Where(repr(name)))
    out = expand_path(name).resolve()
    written: Path | None = None
    try:
        _check_out(out, source)
        handle, temporary = tempfile.mkstemp(prefix=f".{out.name[:100]}.", dir=out.parent)
        written = Path(temporary)
        with os.fdopen(handle, "wb") as file, _maybe_gzip(file, out.name) as stream:
            yield stream.write
        written.chmod(0o666 & ~_umask())
        written.replace(out)
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror or error}", where=Where(str(out))) from None
    finally:
        if written is not None:
            with suppress(OSError):
                written.unlink()


def _check_out(out: Path, source: str) -> None:
    if out.is_dir():
        raise UserError("is a folder; name the new file", where=Where(str(out)))
    if out.exists() and not out.is_file():
        raise UserError("is not a file; use - to write to stdout", where=Where(str(out)))
    read = expand_path(source)
    if source != "-" and out.exists() and read.exists() and out.samefile(read):
        raise UserError("is the file that is read, and would be overwritten", where=Where(str(out)))


@contextmanager
def _maybe_gzip(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    if not name.endswith(".gz"):
        yield file
        return
    with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
        yield stream  # type: ignore[misc]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
