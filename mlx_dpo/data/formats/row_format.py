"""`RowFormat`, the interface of a row format, and base classes for pairs and for single completions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from mlx_dpo.data import row_fields
from mlx_dpo.data.conversations import NamedValue, split_completion, split_pair
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.formats import row_columns as columns
from mlx_dpo.data.formats.row_columns import ColumnSets, Row
from mlx_dpo.data.messages import is_hh_dialogue
from mlx_dpo.errors import RowError

_MAX_PAIRS = 4096  # of lists of completions in one row


class RowFormat(ABC):
    """A way to write examples as a row. Null values count as absent columns.

    Derive from `PairFormat` (chosen and rejected columns), `CompletionFormat` (one completion), `PublicDataset` (a
    known set of columns) or `AnnotationExport` (an annotation tool's JSON), or from this class if none of them applies.

    Attributes:
        order: formats are tried in ascending order, and the first that matches parses the row. Public datasets, which
            are recognized by a set of columns, have orders below 100; a format without an order is tried last.
        column_sets: sets of columns, one of which a row must have for `matches` to be called.
    """

    order: ClassVar[int] = 1000
    column_sets: ClassVar[ColumnSets] = ((),)

    @abstractmethod
    def matches(self, row: Row) -> bool:
        """Whether a row is in this format."""

    @abstractmethod
    def parse(self, row: Row) -> Sequence[Example]:
        """The examples in a row that matches.

        Raises:
            RowError: a value is invalid in this format; without a location, which the caller adds.
        """

    @abstractmethod
    def label(self, row: Row) -> str:
        """The name under which `data check` counts a row that matches."""

    def columns_read(self, row: Row) -> Iterable[str]:
        """The columns that a row that matches is read from, beside `COMMON_COLUMNS`; all of them unless overridden."""
        return row

    def check_paired(self, row: Row) -> None:  # noqa: B027
        """Raise `RowError` if a row that matches holds a single completion instead of pairs."""


class PairFormat(RowFormat):
    """Rows with a chosen and a rejected column."""

    column_sets = columns.PAIR_COLUMNS
    is_hh_dialogue: ClassVar[bool] = False

    def parse(self, row: Row) -> list[Pair]:
        """The pair of a row; if chosen or rejected is a list of completions, a pair for each of them."""
        tools, template_kwargs = row_fields.parse_tools(row), row_fields.parse_template_kwargs(row)
        prompt, (chosen, rejected) = columns.prompt(row), columns.pair(row)
        if prompt is None:
            columns.check_no_whole_column(chosen, rejected)
        else:
            prompt = columns.without_answer(prompt, chosen, rejected)
        is_hh = self.is_hh_dialogue and not columns.system_text(row)
        margin, scores = row_fields.parse_margin(row), row_fields.parse_score_columns(row)
        pairs = [(good, bad) for good in columns.alternatives(chosen) for bad in columns.alternatives(rejected)]
        if len(pairs) > _MAX_PAIRS:
            message = f"{len(pairs)} pairs in a row, more than {_MAX_PAIRS}"
            raise RowError(message, kind="completions", field=rejected[0])
        return [
            Pair(
                *columns.with_system(row, *split_pair(prompt, good, bad)), tools, template_kwargs, is_hh, margin, scores
            )
            for good, bad in pairs
        ]

    def columns_read(self, row: Row) -> Iterable[str]:
        """The prompt, its input, and the chosen and rejected columns."""
        prompt = columns.prompt_column(row)
        return [*(columns.pair_columns(row) or ()), *prompt_columns_read(prompt)]


class CompletionFormat(RowFormat):
    """Rows with one completion, labelled or not."""

    noun: ClassVar[str]

    @abstractmethod
    def column(self, row: Row) -> str | None:
        """The column with the completion, or with the conversation that it ends; None if there is none."""

    def prompt(self, row: Row) -> NamedValue | None:
        """The prompt; None if it is the conversation before the completion."""
        return None

    def matches(self, row: Row) -> bool:
        """Whether there is a completion and no column of a pair."""
        return not columns.has_pair_column(row) and self.column(row) is not None

    def parse(self, row: Row) -> list[Completion]:
        """The one completion of a row."""
        column = str(self.column(row))
        value = row[column]
        prompt, completion = split_completion(self.prompt(row), (column, value))
        prompt, completion, _ = columns.with_system(row, prompt, completion, completion)
        is_hh = isinstance(value, str) and is_hh_dialogue(value) and not columns.system_text(row)
        label, tools = row_fields.parse_label(row), row_fields.parse_tools(row)
        return [Completion(prompt, completion, label, tools, row_fields.parse_template_kwargs(row), is_hh)]

    def label(self, row: Row) -> str:
        """The column's name, and whether there is a label."""
        has_label = any(row_fields.has_columns(row, name) for name in row_fields.LABEL_COLUMNS)
        return f"{self.column(row)}{', label' if has_label else ''}"

    def columns_read(self, row: Row) -> Iterable[str]:
        """The completion, and the prompt if it has its own column."""
        prompt = self.prompt(row)
        return [str(self.column(row)), *prompt_columns_read(prompt[0] if prompt else None)]

    def check_paired(self, row: Row) -> None:
        """Raise `RowError`."""
        raise RowError(
            f"a single {self.noun} is not a pair",
            kind="unpaired",
            field=self.column(row),
            hint="Train on it with --loss sft, or, if it has a `label`, with --loss kto, bco or apo_zero_unpaired; "
            "a pair has `prompt`, `chosen` and `rejected`. Columns of other names are given by --chosen-column and "
            "--rejected-column.",
        )


def prompt_columns_read(column: str | None) -> tuple[str, ...]:
    """The columns that a prompt in a column is read from."""
    if column is None:
        return ()
    return (column, "input") if column == "instruction" else (column.partition(".")[0],)
