"""distilabel's rows of generations with a rating each."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.json_values import json_type_name
from mlx_dpo.data.row_fields import parse_number
from mlx_dpo.errors import RowError


class Distilabel(PublicDataset):
    """Generations of an instruction and their ratings; one that has no rating is left out."""

    order = 90
    columns = ("instruction", "generations", "ratings")
    prompt_column = "instruction"

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """The ratings."""
        generations, ratings = row["generations"], row["ratings"]
        for name, value in (("generations", generations), ("ratings", ratings)):
            if not isinstance(value, (list, tuple)):
                raise RowError(f"must be a list, not {json_type_name(value)}", kind="type", field=name)
        if len(generations) != len(ratings):
            message = f"{len(ratings)} ratings for {len(generations)} generations"
            raise RowError(message, kind="completions", field="ratings")
        pairs = zip(generations, ratings, strict=True)
        rated = [(text, parse_number(rating, "ratings")) for text, rating in pairs if None not in (text, rating)]
        return [text for text, _ in rated], [rating for _, rating in rated]

    def parse(self, row: Row) -> list[Any]:
        """A pair for every two rated generations; none where fewer than two are rated."""
        return super().parse(row) if len(self.scored(row)[0]) > 1 else []


class DistilabelPrompt(Distilabel):
    """The same with `prompt`."""

    columns = ("prompt", "generations", "ratings")
    prompt_column = "prompt"
