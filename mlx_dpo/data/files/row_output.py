"""Output of rows: a file that is written atomically, gzip-compressed if its name ends in .gz, or stdout."""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from mlx_dpo.data.files.local_files import expand_path
from mlx_dpo.errors import UserError, Where

Write = Callable[[bytes], object]


def open_output(name: str, source: str) -> AbstractContextManager[Write]:
    """Open a new file, or stdout for `-`.

    Args:
        name: the new file, gzip-compressed if its name ends in .gz. On failure it is left as it was.
        source: the file that is read, which must not be overwritten.

    Returns:
        A context that gives the function that writes bytes.

    Raises:
        UserError: it can't be written.
    """
    return _stdout() if name == "-" else _atomic_output(name, source)


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
