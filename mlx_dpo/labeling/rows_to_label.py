"""Rows with the completions to label: those that `sample` writes, and rows that already have preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_dpo.data import row_fields
from mlx_dpo.data.candidate_rows import parse_candidates
from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.examples import Candidates, Example
from mlx_dpo.data.prompt_files import parse_prompt
from mlx_dpo.data.text_values import decode_text_values
from mlx_dpo.errors import RowError, Where
from mlx_dpo.judges.judge import plain_text

_GRADE_SIGNS = {"scores": 1.0, "rankings": -1.0}  # so that higher is better


@dataclass(frozen=True)
class RowToLabel:
    """A prompt with the completions that can be trained on, and what people think of them.

    Attributes:
        candidates: the prompt, and what else the chat template takes.
        completions: [n], as they are in the row.
        texts: [n], as a judge reads them.
        grades: [n] of people: a higher one is better; None if the row has none.
        label: people's label of the only completion; None if the row has none.
        num_empty: completions that were left out because they are empty.
        num_truncated: completions that were left out because they were cut off.
    """

    candidates: Candidates
    completions: tuple[TextOrMessages, ...]
    texts: tuple[str, ...]
    grades: tuple[float, ...] | None
    label: bool | None
    num_empty: int
    num_truncated: int

    @classmethod
    def from_candidates(cls, candidates: Candidates, drop_truncated: bool) -> RowToLabel:
        """Leave out completions that should not be trained on.

        Args:
            candidates: a row, parsed by `parse_row_to_label`.
            drop_truncated: leave out completions whose `finish_reasons` is "length".
        """
        row = candidates.row
        filled = _filled(row)
        reasons = row.get("finish_reasons")
        is_truncated = [False] * len(candidates.completions)
        if drop_truncated and filled and reasons is not None:
            is_truncated = [reasons[i] == "length" for i in filled]
        kept = [i for i, truncated in enumerate(is_truncated) if not truncated]
        completions = tuple(candidates.completions[i] for i in kept)
        grades = _grades(candidates)
        return cls(
            candidates,
            completions,
            tuple(plain_text(completion) for completion in completions),
            grades and tuple(grades[i] for i in kept),
            row_fields.parse_label(row) if len(completions) == 1 and "completions" not in row else None,
            _num_completions(row) - len(filled),
            sum(is_truncated),
        )


def parse_row_to_label(row: Any, where: Where) -> list[Example]:
    """Parse a row as one prompt and its completions that are not empty; there may be none.

    Accepts all that `parse_candidates` does. A model may answer nothing, so an empty completion is no mistake here.

    Raises:
        RowError: the row can't be read, or its `scores`, `rankings` or `finish_reasons` are not one a completion.
    """
    try:
        decoded = decode_text_values(row) if isinstance(row, dict) else row
        if not isinstance(decoded, dict) or not isinstance(decoded.get("completions"), list):
            return parse_candidates(row, where)
        _check_lists(decoded)
    except RowError as error:
        error.where = where
        raise
    completions, filled = decoded["completions"], _filled(decoded)
    if not filled:
        prompt = parse_prompt({key: value for key, value in decoded.items() if key not in _LISTS}, where)
        return [Candidates(decoded, prompt.prompt, (), None, prompt.tools, prompt.template_kwargs)]
    parsed = parse_candidates({**decoded, "completions": [completions[i] for i in filled]}, where)
    return [replace(example, row=decoded) for example in parsed if isinstance(example, Candidates)]


_LISTS = ("completions", "finish_reasons", *_GRADE_SIGNS)


def _check_lists(row: dict[str, Any]) -> None:
    """Raise `RowError` if a list beside `completions` is not as long, or holds other values than it should."""
    for name in _LISTS[1:]:
        values = row.get(name)
        if values is None:
            continue
        if name in _GRADE_SIGNS:
            row_fields.parse_numbers(values, name)
        if not isinstance(values, list) or len(values) != len(row["completions"]):
            message = f"must be a list with a value for each of the {len(row['completions'])} completions"
            raise RowError(message, kind="completions", field=name)


def _num_completions(row: dict[str, Any]) -> int:
    completions = row.get("completions")
    return len(completions) if isinstance(completions, list) else 0


def _filled(row: dict[str, Any]) -> Sequence[int]:
    """The indices of a row's `completions` that are not empty."""
    completions = row.get("completions")
    if not isinstance(completions, list):
        return []
    return [i for i, value in enumerate(completions) if not isinstance(value, str) or value.strip()]


def _grades(candidates: Candidates) -> tuple[float, ...] | None:
    """People's grades of the completions that are not empty."""
    row, filled = candidates.row, _filled(candidates.row)
    for name, sign in _GRADE_SIGNS.items():
        if row.get(name) is not None and filled:
            numbers = row_fields.parse_numbers(row[name], name)
            return tuple(sign * numbers[i] for i in filled)
    if candidates.num_preferred is None:
        return None
    return tuple(float(i < candidates.num_preferred) for i in range(len(candidates.completions)))
