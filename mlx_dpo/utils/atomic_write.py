"""Write files and folders atomically, and append lines atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlx_dpo.errors import UserError, Where


@contextmanager
def atomic_write(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `target` for a file or a folder, which replaces the target at the end.

    What was written is flushed to disk before it is renamed. An existing target is replaced. If the body raises, the
    temporary is deleted and the target stays as it was.

    Raises:
        OSError: it can't be written.
    """
    final = Path(target)
    partial = final.with_name(f".{final.name}.partial")
    delete(partial)
    try:
        yield partial
        if partial.is_dir():
            for path in partial.rglob("*"):
                fsync_path(path)
        fsync_path(partial)
        _replace(partial, final)
        fsync_path(final.parent)
    finally:
        delete(partial)


@contextmanager
def write_new(target: str | Path) -> Iterator[Path]:
    """`atomic_write` to a place of the user's choice that must not exist yet; an empty folder may.

    Raises:
        UserError: the target exists, or can't be written.
    """
    final = Path(target)
    require_new(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(final) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror or error}", where=Where(str(final))) from None


def require_new(target: Path) -> None:
    """Check that a place to write to does not exist yet, or is an empty folder.

    Raises:
        UserError: it exists.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("it exists already", where=Where(str(target)), hint="Name another place to write to.")


def append_line(file: Path, line: str) -> None:
    """Append a line to a file. If that fails half-way, the file is restored.

    Raises:
        OSError: it can't be written.
    """
    with file.open("ab") as stream:
        before = stream.tell()
        try:
            stream.write(line.encode() + b"\n")
            stream.flush()
        except OSError:
            with file.open("r+b") as again:
                again.truncate(before)
            raise


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def delete(path: Path) -> None:
    """Delete a file or a folder with all its contents, if it is there and can be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _replace(partial: Path, final: Path) -> None:
    """Rename over a file at once; a folder that is not empty can only be replaced in two renames."""
    if not (partial.is_dir() and final.is_dir()):
        partial.replace(final)
        return
    old = final.with_name(f".{final.name}.old.partial")
    delete(old)
    final.rename(old)
    partial.rename(final)
    delete(old)
