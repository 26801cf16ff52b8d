"""The table over rounds, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Round = Mapping[str, Any]


class RoundTableRow(NamedTuple):
    """A row of the table.

    Attributes:
        label: its name.
        cell: the text of a round; empty where it has no value.
    """

    label: str
    cell: Callable[[Round], str]


def table_cells(row: RoundTableRow, rounds: Sequence[Round]) -> list[str]:
    """[rounds] texts of a row."""
    return [row.cell(values) for values in rounds]


def _number(*keys: str, form: str = "{:,}") -> Callable[[Round], str]:
    """The text of a value inside nested objects."""

    def cell(values: Round) -> str:
        value: Any = values
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return "" if value is None else form.format(value)

    return cell


def _win_rate(key: str) -> Callable[[Round], str]:
    def cell(values: Round) -> str:
        win = values.get(key)
        if not win or win["win_rate"] is None:
            return ""
        low, high = win["win_rate_interval"]
        return f"{win['win_rate']:.1%} ({low:.1%} to {high:.1%})"

    return cell


TABLE_ROWS = (
    RoundTableRow("win rate against the start", _win_rate("against_start")),
    RoundTableRow("the same at equal lengths", _number("against_start", "length_controlled_win_rate", form="{:.1%}")),
    RoundTableRow("win rate against the round before", _win_rate("against_previous")),
    RoundTableRow("mean score", _number("mean_score", "own", form="{:.3g}")),
    RoundTableRow("accuracy on held-out pairs", _number("held_out", "rewards/accuracies", form="{:.1%}")),
    RoundTableRow("pairs", _number("labels", "pairs")),
    RoundTableRow("prompts without a pair", _number("labels", "prompts_without_pair")),
    RoundTableRow("comparisons without a verdict", _number("labels", "no_verdict")),
    RoundTableRow("the longer one preferred", _number("labels", "longer_preferred", form="{:.1%}")),
    RoundTableRow("tokens of samples", _number("samples", "mean_tokens", form="{:.0f}")),
    RoundTableRow("different samples of a prompt", _number("samples", "distinct", form="{:.0%}")),
)
