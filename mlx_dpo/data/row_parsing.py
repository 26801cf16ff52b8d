"""Rows to examples: the preference pairs or the single completion in a row, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_dpo.data.data_warnings import RowWarning
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.formats import find_row_format
from mlx_dpo.data.formats.column_errors import no_format_error
from mlx_dpo.data.json_values import json_type_name
from mlx_dpo.data.plain_pairs import parse_plain_pair
from mlx_dpo.data.row_warnings import TABLE_NULLS, row_warnings
from mlx_dpo.data.table_nulls import strip_table_nulls
from mlx_dpo.data.text_values import decode_text_values
from mlx_dpo.errors import RowError, Where

RowParser = Callable[[Any, Where], Sequence[Example]]


def parse_examples(row: Any, where: Where) -> list[Example]:
    """The pairs of a row, or its single completion; empty if all completions have equal scores.

    Args:
        row: the row's JSON value.
        where: its location, for errors.

    Raises:
        RowError: the row is in no format, or a value is not what its format asks for.
    """
    return _parse(row, where, paired=False)


def parse_pairs(row: Any, where: Where) -> list[Pair]:
    """The pairs of a row, as `parse_examples`. Raises `RowError`, also for a single completion."""
    return [example for example in _parse(row, where, paired=True) if isinstance(example, Pair)]


def parse_labelled_examples(row: Any, where: Where) -> list[Example]:
    """The examples of a row; a single completion must have a label. Raises `RowError`."""
    examples = parse_examples(row, where)
    if any(isinstance(example, Completion) and example.desirable is None for example in examples):
        hint = (
            "true: an answer as it should be; false: one as it should not. A label in another column is given by "
            "--label-column; without labels there is --loss sft."
        )
        raise RowError("is missing", kind="label", field="label", where=where, hint=hint)
    return examples


def parse_scored_pairs(row: Any, where: Where) -> list[Pair]:
    """The pairs of a row, whose chosen score must be above the rejected one. Raises `RowError`."""
    pairs = parse_pairs(row, where)
    for pair in pairs:
        if pair.scores is None:
            hint = "Give `score_chosen` and `score_rejected`, or `completions` with `scores`; --loss odpo needs them."
            raise RowError("the pair has no scores", kind="scores", where=where, hint=hint)
        if pair.scores[0] <= pair.scores[1]:
            message = f"the chosen answer's score is {pair.scores[0]}, the rejected one's {pair.scores[1]}"
            raise RowError(message, kind="scores", where=where, hint="--loss odpo takes the log of their difference.")
    return pairs


def row_format_label(row: Any) -> str:
    """The name under which `data check` counts a row, accepted or not."""
    if not isinstance(row, dict):
        return "not an object"
    try:
        row = decode_text_values(row)
    except RowError:
        return "unknown"
    row_format = find_row_format(row)
    return "unknown" if row_format is None else row_format.label(row)


def _parse(row: Any, where: Where, *, paired: bool) -> list[Example]:
    try:
        if not isinstance(row, dict):
            raise RowError(f"a row must be a JSON object, not {json_type_name(row)}", kind="not an object")
        plain = parse_plain_pair(row)
        if plain is not None:
            return [plain]
        decoded = decode_text_values(row)
        stripped = strip_table_nulls(decoded)
        row_format = find_row_format(stripped)
        if row_format is None:
            raise no_format_error(row)
        if paired:
            row_format.check_paired(stripped)
        examples = list(row_format.parse(stripped))
        warnings = row_warnings(stripped, row_format, examples)
        if stripped is not decoded:
            warnings.append(RowWarning(TABLE_NULLS))
        return add_warnings(examples, warnings)
    except RowError as error:
        error.where = where
        raise


def add_warnings(examples: list[Example], warnings: Sequence[RowWarning]) -> list[Example]:
    """The examples of a row that was just parsed, the first of which now carries more warnings about it."""
    if warnings and examples:
        # `dataclasses.replace` would take a tenth of the time that a row is parsed in, and nobody else has them yet
        object.__setattr__(examples[0], "warnings", (*examples[0].warnings, *warnings))
    return examples
