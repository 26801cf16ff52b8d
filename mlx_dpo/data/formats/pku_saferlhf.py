"""PKU-Alignment/PKU-SafeRLHF: `better_response_id` is the number of the better response."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.row_fields import parse_integer


class PKUSafeRLHF(PublicDataset):
    """Two responses and the number of the better one."""

    order = 20
    columns = ("prompt", "response_0", "response_1", "better_response_id")

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """Score 1 for the better response, 0 for the other."""
        better = parse_integer(row, "better_response_id", range(2))
        return [row["response_0"], row["response_1"]], [1 - better, better]
