"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlx_dpo.errors import UserError, Where


@contextmanager
def written_aside(target: str | Path) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to. It is renamed to `target` at the end, or deleted if that
    is never reached.

    Raises:
        UserError: the target exists (an empty folder does not count), or can't be written.
    """
    final = Path(target)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError("this exists already", where=Where(str(final)), hint="Name another place to write to.")
    partial = final.with_name(f".{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _delete(partial)
        yield partial
        if final.exists():
            final.rmdir()
        partial.rename(final)
    except OSError as error:
        raise UserError(f"can't be written: {error.strerror or error}", where=Where(str(final))) from None
    finally:
        _delete(partial)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
