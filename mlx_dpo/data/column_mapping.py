"""Rows of well-known preference sets, recognised by their columns, and columns that the user has named.

Pure functions from a row to a row that `mlx_dpo.data.row_parsing` accepts; UltraFeedback binarized, HH-RLHF and
orca_dpo_pairs need no mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mlx_dpo.data.json_values import json_type_name
from mlx_dpo.errors import RowError, Where

Row = dict[str, Any]
T = TypeVar("T")


def with_renamed_columns(columns: Mapping[str, str], parse: Callable[[Any, Where], T]) -> Callable[[Any, Where], T]:
    """`read`, of rows whose columns have other names.

    Args:
        columns: for `prompt`, `chosen`, `rejected`, `completion` or `label` the name of the column that holds it; one
            with dots is inside an object (`data.question`).
        read: `pairs_of`, or what else reads a row at a place.
    """
    if not columns:
        return parse

    def parse_renamed(row: Any, where: Where) -> T:
        try:
            return parse(rename_columns(row, columns), where)
        except RowError as error:
            error.where = where
            raise

    return parse_renamed


def rename_columns(row: Any, columns: Mapping[str, str]) -> Any:
    """A row with its columns under their usual names. Raises `RowError`, without a location, where one is missing."""
    if not columns or not isinstance(row, dict):
        return row
    renamed = {name: _column_value(row, column) for name, column in columns.items()}
    return {**{key: value for key, value in row.items() if key not in columns.values()}, **renamed}


def to_canonical_row(row: Any) -> Any:
    """A row of a known set as `prompt`, `completions` and `scores`; any other row unchanged.

    Raises:
        RowError: a column of a known set has an unexpected value; without a location.
    """
    if not isinstance(row, dict):
        return row
    for needed, read in _KNOWN:
        if needed <= row.keys() and all(row[name] is not None for name in needed):
            return read(row)
    return row


def _column_value(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            listed = ", ".join(str(key)[:30] for key in list(row)[:12]) or "none"
            hint = f"Columns here: {listed}."
            raise RowError("the column that was named is missing", kind="missing key", field=column, hint=hint)
        value = value[part]
    return value


def _ranked(row: Row, prompt: str, answers: list[Any], scores: list[Any]) -> Row:
    kept = {name: row[name] for name in ("system", "tools", "chat_template_kwargs") if row.get(name) is not None}
    return {**kept, "prompt": row[prompt], "completions": answers, "scores": scores}


def _one_of(row: Row, name: str, allowed: tuple[int, ...]) -> int:
    value = row[name]
    if isinstance(value, bool) or value not in allowed:
        shown = value if isinstance(value, (int, float)) else json_type_name(value)
        raise RowError(f"must be one of {allowed}, not {shown}", kind="type", field=name)
    return int(value)


def _shp(row: Row) -> Row:
    """stanfordnlp/SHP: `labels` is 1 where A is preferred."""
    label = _one_of(row, "labels", (0, 1))
    return _ranked(row, "history", [row["human_ref_A"], row["human_ref_B"]], [label, 1 - label])


def _nectar(row: Row) -> Row:
    """berkeley-nest/Nectar: seven answers with ranks, 1 the best."""
    return _ranked(row, "prompt", _values_of(row["answers"], "answers", "answer"), _negated(row["answers"], "rank"))


def _ultrafeedback(row: Row) -> Row:
    """openbmb/UltraFeedback: four answers with an overall score each."""
    completions = row["completions"]
    if not (isinstance(completions, list) and completions and isinstance(completions[0], dict)):
        return row
    if not all(isinstance(c, dict) and {"response", "overall_score"} <= c.keys() for c in completions):
        return row
    return _ranked(
        row,
        "instruction",
        _values_of(completions, "completions", "response"),
        _values_of(completions, "completions", "overall_score"),
    )


def _helpsteer2(row: Row) -> Row:
    """nvidia/HelpSteer2, preference: -3 (the first is much better) to 3."""
    strength = _one_of(row, "preference_strength", tuple(range(-3, 4)))
    return _ranked(row, "prompt", [row["response_1"], row["response_2"]], [-strength, strength])


def _helpsteer3(row: Row) -> Row:
    """nvidia/HelpSteer3, preference: as HelpSteer2, of conversations."""
    strength = _one_of(row, "overall_preference", tuple(range(-3, 4)))
    return _ranked(row, "context", [row["response1"], row["response2"]], [-strength, strength])


def _helpsteer(row: Row) -> Row:
    """nvidia/HelpSteer and HelpSteer2: one answer a row, rated."""
    if any(row.get(name) is not None for name in ("chosen", "rejected", "completions")):
        return row
    hint = "nvidia/HelpSteer2 has pairs in its folder preference: --data nvidia/HelpSteer2:preference/train"
    raise RowError("is a single answer with ratings (HelpSteer), not a pair", kind="unpaired", hint=hint)


def _pku(row: Row) -> Row:
    """PKU-Alignment/PKU-SafeRLHF: the number of the better answer."""
    better = _one_of(row, "better_response_id", (0, 1))
    return _ranked(row, "prompt", [row["response_0"], row["response_1"]], [1 - better, better])


def _values_of(items: Any, name: str, key: str) -> list[Any]:
    if not isinstance(items, list):
        raise RowError(f"must be a list, not {json_type_name(items)}", kind="type", field=name)
    for i, item in enumerate(items):
        if not isinstance(item, dict) or item.get(key) is None:
            raise RowError("is missing", kind="missing key", field=f"{name}[{i}].{key}")
    return [item[key] for item in items]


def _negated(items: Any, key: str) -> list[Any]:
    ranks = _values_of(items, "answers", key)
    for i, rank in enumerate(ranks):
        if isinstance(rank, bool) or not isinstance(rank, (int, float)):
            raise RowError(f"must be a number, not {json_type_name(rank)}", kind="type", field=f"answers[{i}].{key}")
    return [-rank for rank in ranks]


# The columns that give a set away, and how its rows are read; the first that fits.
_KNOWN: tuple[tuple[frozenset[str], Callable[[Row], Row]], ...] = (
    (frozenset({"history", "human_ref_A", "human_ref_B", "labels"}), _shp),
    (frozenset({"prompt", "response_0", "response_1", "better_response_id"}), _pku),
    (frozenset({"prompt", "response_1", "response_2", "preference_strength"}), _helpsteer2),
    (frozenset({"context", "response1", "response2", "overall_preference"}), _helpsteer3),
    (frozenset({"prompt", "response", "helpfulness", "correctness", "coherence"}), _helpsteer),
    (frozenset({"prompt", "answers", "num_responses"}), _nectar),
    (frozenset({"instruction", "completions", "models"}), _ultrafeedback),
)
