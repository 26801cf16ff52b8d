r"""Dialogues as texts, as in Anthropic's HH-RLHF: {"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": "..."}."""

from __future__ import annotations

from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import PairFormat
from mlx_dpo.data.messages import is_hh_dialogue


class HHDialogue(PairFormat):
    """Two sides that are such dialogues, or a prompt that is one and two texts."""

    order = 100
    is_hh_dialogue = True

    def matches(self, row: Row) -> bool:
        """Whether all are texts, and the prompt, or without one both sides, are dialogues."""
        if not columns.has_pair(row):
            return False
        (_, chosen), (_, rejected) = columns.pair(row)
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            return False
        prompt = columns.prompt_column(row)
        if prompt is None:
            return is_hh_dialogue(chosen) and is_hh_dialogue(rejected)
        return isinstance(row[prompt], str) and is_hh_dialogue(row[prompt])

    def label(self, row: Row) -> str:
        """Whether there is a prompt column."""
        prompt = columns.prompt_column(row)
        return "implicit prompt, HH text" if prompt is None else f"{prompt}, chosen, rejected, HH text"
