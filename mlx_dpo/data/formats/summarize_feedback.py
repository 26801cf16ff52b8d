"""openai/summarize_from_feedback, comparisons: two summaries of a post or an article; `choice` is the better one."""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.json_values import check_text, json_type_name
from mlx_dpo.data.row_fields import parse_integer, parse_values
from mlx_dpo.errors import RowError


class SummarizeFeedback(PublicDataset):
    """Two summaries of a Reddit post (TL;DR) or of a news article (CNN/DM), and the number of the better one.

    The prompt is the text that the data set's authors gave their models, which ends in "TL;DR:". Summaries begin with a
    space, as published.
    """

    order = 82
    columns = ("info", "summaries", "choice")

    def matches(self, row: Row) -> bool:
        """Whether all the columns are there, and the first is an object."""
        return super().matches(row) and isinstance(row["info"], dict)

    def prompt(self, row: Row) -> Row:
        """The post with its subreddit and title, or the article."""
        info = row["info"]
        if info.get("post") is None:
            return {"prompt": f"Article: {_text(info, 'article')}\n\nTL;DR:"}
        headings = (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "), ("post", "POST: "))
        parts = [heading + _text(info, key) for key, heading in headings if info.get(key) is not None]
        return {"prompt": "\n\n".join([*parts, "TL;DR:"])}

    def scored(self, row: Row) -> tuple[list[Any], list[float]]:
        """Score 1 for the better summary, 0 for the other."""
        texts = parse_values(row, "summaries", "text")
        choice = parse_integer(row, "choice", range(len(texts)))
        return texts, [float(i == choice) for i in range(len(texts))]


def _text(info: dict[str, Any], key: str) -> str:
    """A text in `info`. Raises `RowError`."""
    value, name = info.get(key), f"info.{key}"
    if not isinstance(value, str):
        raise RowError(f"must be text, not {json_type_name(value)}", kind="type", field=name)
    check_text(value, name)
    return value
