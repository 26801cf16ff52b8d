"""The table of `mlx-dpo label`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

COUNT_LABELS = {
    "prompts": "prompts",
    "completions": "completions",
    "empty": "empty completions, left out",
    "truncated": "truncated completions, left out",
    "rows": "rows written",
    "pairs": "pairs",
    "prompts_without_pair": "prompts without a pair",
    "labelled_true": "labelled true",
    "labelled_false": "labelled false",
    "ties": "ties",
    "no_verdict": "without a verdict",
    "swayed_by_order": "changed with the order",
    "remaining": "prompts not judged yet",
    "calls": "calls of the judge",
    "cache_hits": "verdicts from the cache",
}
SHOWN_IF_ANY = {"empty", "truncated", "labelled_true", "labelled_false", "swayed_by_order", "remaining"}


def label_table(summary: Mapping[str, Any], row_format: str, judge: str) -> Table:
    """What a judge's verdicts amount to.

    Args:
        summary: of `label`.
        row_format: of the rows that were written.
        judge: its name.
    """
    table = Table("completions", title=f"Judged by {judge}", title_justify="left")
    table.add_column(Text(row_format), justify="right")
    for name, label in COUNT_LABELS.items():
        if summary[name] or name not in SHOWN_IF_ANY:
            table.add_row(label, f"{summary[name]:,}")
    if summary["pairs"]:
        lengths = summary["mean_characters"]
        table.add_row("characters, preferred and other", f"{lengths['chosen']:.0f}, {lengths['rejected']:.0f}")
        table.add_row(
            "the longer one preferred", format_share(summary["longer_preferred"], summary["longer_preferred_interval"])
        )
    for label, value in _agreement_rows(summary["agreement"] or {}):
        table.add_row(label, value)
    return table


def _agreement_rows(agreement: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind, values in agreement.items():
        yield (
            f"agreement with {kind} of people ({values['compared']:,})",
            format_share(values["agreement"], values["interval"]),
        )
        yield "Cohen's kappa", f"{values['kappa']:.2f}"


def format_share(share: float, interval: tuple[float, float]) -> str:
    """A share with its interval, such as 61.2% (55.0% to 67.0%)."""
    low, high = interval
    return f"{share:.1%} ({low:.1%} to {high:.1%})"
