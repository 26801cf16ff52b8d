"""nvidia/HelpSteer2 and HelpSteer3, preference, and HelpSteer's single rated responses, which make no pair.

A preference runs from -3, the first response is much better, to 3.
"""

from __future__ import annotations

from typing import Any, NoReturn

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.row_fields import has_columns, parse_integer
from mlx_dpo.errors import RowError


class HelpSteer2(PublicDataset):
    """Two responses to a prompt and by how much the second is preferred."""

    order = 30
    columns = ("prompt", "response_1", "response_2", "preference_strength")

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """The preference for the second response, its negative for the first."""
        preference = parse_integer(row, "preference_strength", range(-3, 4))
        return [row["response_1"], row["response_2"]], [-preference, preference]


class HelpSteer3(PublicDataset):
    """Two responses to a conversation and by how much the second is preferred."""

    order = 40
    columns = ("context", "response1", "response2", "overall_preference")
    prompt_column = "context"

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """The preference for the second response, its negative for the first."""
        preference = parse_integer(row, "overall_preference", range(-3, 4))
        return [row["response1"], row["response2"]], [-preference, preference]


class HelpSteerRatings(PublicDataset):
    """One response with ratings, refused with a pointer to the pairs."""

    order = 50
    columns = ("prompt", "response", "helpfulness", "correctness", "coherence")

    def matches(self, row: Row) -> bool:
        """Whether all the columns are there, and none that makes a pair."""
        paired = any(has_columns(row, name) for name in ("chosen", "rejected", "completions"))
        return super().matches(row) and not paired

    def scored(self, row: Row) -> NoReturn:
        """Raise `RowError`."""
        hint = "nvidia/HelpSteer2 has pairs in its folder preference: --data nvidia/HelpSteer2:preference/train"
        raise RowError("is a single answer with ratings (HelpSteer), not a pair", kind="unpaired", hint=hint)
