"""Completions with scores or rankings: {"prompt": "...", "completions": ["...", "..."], "scores": [1.5, 3]}."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_dpo.data import row_fields
from mlx_dpo.data.conversations import NamedValue, check_text_or_messages, split_pair
from mlx_dpo.data.examples import Pair
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.column_errors import missing_column
from mlx_dpo.data.formats.row_columns import Row
from mlx_dpo.data.formats.row_format import RowFormat, prompt_columns_read
from mlx_dpo.data.json_values import json_type_name
from mlx_dpo.errors import RowError

_MAX_COMPLETIONS = 256
_GRADE_COLUMNS = ("scores", "rankings")


class ScoredCompletions(RowFormat):
    """Completions of a prompt with `scores` (higher is better) or `rankings` (1 is best)."""

    order = 140
    column_sets = (("completions",),)

    def matches(self, row: Row) -> bool:
        """Whether there are completions."""
        return row_fields.has_columns(row, "completions")

    def parse(self, row: Row) -> list[Pair]:
        """A pair for every two completions with different scores or ranks, and its scores where these are known."""
        tools, template_kwargs = row_fields.parse_tools(row), row_fields.parse_template_kwargs(row)
        prompt, grade_column = columns.prompt(row), _grade_column(row)
        if prompt is None:
            raise missing_column(row, "prompt")
        if grade_column is None:
            hint = (
                "Add `scores` (higher is better) or `rankings` (1 is best), or have a judge compare them with "
                "`mlx-dpo label`; an order is not guessed."
            )
            raise RowError("completions come without scores", kind="missing key", field="scores", hint=hint)
        grades = row_fields.parse_numbers(row[grade_column], grade_column)
        completions = _completions(row["completions"])
        if len(grades) != len(completions):
            message = f"{len(grades)} {grade_column} for {len(completions)} completions"
            raise RowError(message, kind="completions", field=grade_column)
        graded = list(zip(completions, grades, strict=True))
        scored = grade_column == "scores"
        return [
            Pair(
                *columns.with_system(row, *split_pair(prompt, chosen, rejected)),
                tools,
                template_kwargs,
                scores=(grade, other_grade) if scored else None,
            )
            for chosen, grade in graded
            for rejected, other_grade in graded
            if (grade > other_grade if scored else grade < other_grade)
        ]

    def label(self, row: Row) -> str:
        """The columns."""
        return f"prompt, completions, {_grade_column(row) or 'no scores'}"

    def columns_read(self, row: Row) -> Iterable[str]:
        """The prompt, the completions and their scores or ranks."""
        return ["completions", *_GRADE_COLUMNS, *prompt_columns_read(columns.prompt_column(row))]


def _grade_column(row: Row) -> str | None:
    return next((column for column in _GRADE_COLUMNS if row_fields.has_columns(row, column)), None)


def _completions(values: object) -> list[NamedValue]:
    if not isinstance(values, (list, tuple)):
        raise RowError(f"must be a list, not {json_type_name(values)}", kind="type", field="completions")
    if not 2 <= len(values) <= _MAX_COMPLETIONS:
        message = f"must hold 2 to {_MAX_COMPLETIONS} completions, not {len(values)}"
        raise RowError(message, kind="completions", field="completions")
    named = [(f"completions[{i}]", value) for i, value in enumerate(values)]
    for name, value in named:
        check_text_or_messages(name, value)
    return named
