"""Parquet files as lines of JSON. Needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_dpo.data.table_nulls import without_nulls
from mlx_dpo.errors import UserError, Where

ROWS_PER_BATCH = 256  # in memory at once


class ParquetLines:
    """The rows of a parquet file as lines of JSON, read a few at a time.

    Attributes:
        fraction_read: how much is read, 0 to 1.
    """

    def __init__(self, file: Path, name: str) -> None:
        """name: what errors call the file."""
        self.file, self.name, self.fraction_read = file, name, 0.0

    def __iter__(self) -> Iterator[bytes]:
        """Raises `UserError` if it is not a parquet file, or pyarrow is not installed."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            message = "parquet files are read by pyarrow, which is not installed"
            raise UserError(message, where=Where(self.name), hint="pip install 'mlx-dpo[parquet]'") from None
        try:
            with pyarrow.parquet.ParquetFile(self.file) as table:
                rows_read, total = 0, max(1, table.metadata.num_rows)
                for batch in table.iter_batches(batch_size=ROWS_PER_BATCH):
                    for row in batch.to_pylist():
                        # a null inside a column's objects is a key that they don't have
                        row = {column: without_nulls(value) for column, value in row.items()}
                        yield json.dumps(row, ensure_ascii=False, default=_json_default).encode() + b"\n"
                    rows_read += batch.num_rows
                    self.fraction_read = rows_read / total
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(f"the parquet file can't be read: {reason}", where=Where(self.name)) from None


def _json_default(value: Any) -> str:
    """Dates and bytes as text; no column that is trained on holds any."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
