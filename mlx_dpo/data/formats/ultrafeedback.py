"""openbmb/UltraFeedback: four completions with an overall score each."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.row_fields import parse_values


class UltraFeedback(PublicDataset):
    """Completions that are objects with `response` and `overall_score`."""

    order = 70
    columns = ("instruction", "completions", "models")
    prompt_column = "instruction"

    def matches(self, row: Row) -> bool:
        """Whether all the columns are there and each completion has both keys."""
        completions = row.get("completions")
        if not super().matches(row) or not isinstance(completions, list) or not completions:
            return False
        return all(isinstance(item, dict) and {"response", "overall_score"} <= item.keys() for item in completions)

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """The overall scores."""
        responses, scores = (parse_values(row, "completions", key) for key in ("response", "overall_score"))
        return responses, scores
