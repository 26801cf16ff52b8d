"""ShareGPT's conversations: {"conversations": [{"from": "human", "value": "..."}], "chosen": ..., "rejected": ...}."""

from __future__ import annotations

from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import PairFormat


class ShareGPT(PairFormat):
    """A prompt of messages with `from` and `value`."""

    order = 110

    def matches(self, row: Row) -> bool:
        """Whether there are two sides and a prompt with such messages."""
        prompt = columns.prompt_column(row)
        if prompt is None or not columns.has_pair(row) or not isinstance(row[prompt], list):
            return False
        return any(isinstance(message, dict) and "from" in message for message in row[prompt])

    def label(self, row: Row) -> str:
        """ShareGPT."""
        return "ShareGPT"
