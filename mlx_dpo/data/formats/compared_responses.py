"""Two responses and a number that says which is better: PandaLM's rows and Auto-J's."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.row_fields import parse_integer


class PandaLM(PublicDataset):
    """WeOpenML/PandaLM: `label` is the number of the better response, 0 for a tie."""

    order = 80
    columns = ("instruction", "response1", "response2", "label")

    def prompt(self, row: Row) -> Row:
        """The instruction with its input."""
        return {column: row[column] for column in ("instruction", "input") if row.get(column) is not None}

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """Score 1 for the better response, 0 for the other."""
        label = parse_integer(row, "label", range(3))
        return [row["response1"], row["response2"]], [float(label == 1), float(label == 2)]


class AutoJ(PublicDataset):
    """GAIR-NLP/auto-j: `label` is 0 if the first response is better, 1 if the second is, 2 for a tie."""

    order = 81
    columns = ("prompt", "response 1", "response 2", "label")

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """Score 1 for the better response, 0 for the other."""
        label = parse_integer(row, "label", range(3))
        return [row["response 1"], row["response 2"]], [float(label == 0), float(label == 1)]
