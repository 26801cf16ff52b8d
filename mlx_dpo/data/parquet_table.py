"""Parquet as lines of JSON, a few rows at a time. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where

ROWS_PER_BATCH = 256  # in memory at once


class ParquetLines:
    """The rows of a file as lines of JSON, in a stream that can be read once, a row group at a time."""

    def __init__(self, file: str | Path, name: str) -> None:
        """name: what complaints call the file."""
        self.file, self.name, self._fraction_read = file, name, 0.0

    def fraction_read(self) -> float:
        """How much is read, 0 to 1."""
        return self._fraction_read

    def peek(self, size: int) -> bytes:
        """Nothing: these are lines, no array."""
        return b""

    def __iter__(self) -> Iterator[bytes]:
        """Raises `UserError`, where it is no table, or pyarrow is not installed."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            hint = "pip install 'mlx-dpo[parquet]'"
            message = "parquet files are read by pyarrow, which is not installed"
            raise UserError(message, where=Where(self.name), hint=hint) from None
        try:
            with pyarrow.parquet.ParquetFile(self.file) as table:
                done, rows = 0, max(1, table.metadata.num_rows)
                for batch in table.iter_batches(batch_size=ROWS_PER_BATCH):
                    for row in batch.to_pylist():
                        yield json.dumps(row, ensure_ascii=False, default=_json_default).encode() + b"\n"
                    done += batch.num_rows
                    self._fraction_read = done / rows
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(f"the parquet file can't be read: {reason}", where=Where(self.name)) from None


def _json_default(value: Any) -> str:
    """Dates and bytes, which JSON has no word for; no column that is trained on holds any."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
