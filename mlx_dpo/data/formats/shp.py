"""stanfordnlp/SHP: `labels` is 1 if the comment A is preferred."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.row_fields import parse_integer


class SHP(PublicDataset):
    """Two comments on a post and which of them is preferred."""

    order = 10
    columns = ("history", "human_ref_A", "human_ref_B", "labels")
    prompt_column = "history"

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """Score 1 for the preferred comment, 0 for the other."""
        label = parse_integer(row, "labels", range(2))
        return [row["human_ref_A"], row["human_ref_B"]], [label, 1 - label]
