"""Rows with images, audio or video beside their texts, which are refused: a model would be trained without them."""

from __future__ import annotations

from typing import Any, NoReturn

from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import RowFormat
from mlx_dpo.errors import RowError

_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")


class MediaRow(RowFormat):
    """A row with an image, video or audio."""

    order = 1
    column_sets = tuple((column,) for column in _COLUMNS)

    def matches(self, row: Row) -> bool:
        """Whether there is one; null and empty columns are none."""
        return any(_is_filled(row.get(column)) for column in _COLUMNS)

    def parse(self, row: Row) -> NoReturn:
        """Raise `RowError`."""
        column = next(column for column in _COLUMNS if _is_filled(row.get(column)))
        hint = "Leave such rows out; a column that only describes the text can be removed or renamed."
        raise RowError(f"the row has {column}, and only text can be trained on", kind="media", field=column, hint=hint)

    def label(self, row: Row) -> str:
        """What it has."""
        return "images, video or audio"


def _is_filled(value: Any) -> bool:
    return bool(value) if isinstance(value, (bool, str, list, tuple, dict)) else value is not None
