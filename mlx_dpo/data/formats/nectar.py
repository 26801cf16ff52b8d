"""berkeley-nest/Nectar: seven answers with ranks, 1 the best."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.row_fields import parse_number, parse_values


class Nectar(PublicDataset):
    """Answers with ranks."""

    order = 60
    columns = ("prompt", "answers", "num_responses")

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """The negative ranks."""
        answers, ranks = (parse_values(row, "answers", key) for key in ("answer", "rank"))
        return answers, [-parse_number(rank, f"answers[{i}].rank") for i, rank in enumerate(ranks)]
