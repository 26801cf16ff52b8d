"""The output of `mlx-dpo data check`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlx_dpo.cli.console import stdout_console
from mlx_dpo.data.data_check import QUANTILES, DataCheck, TokenLengths
from mlx_dpo.data.data_warnings import Occurrences, describe
from mlx_dpo.data.json_values import printable
from mlx_dpo.errors import RowError
from mlx_dpo.utils.formatting import plural


def print_data_check(check: DataCheck) -> None:
    """Print the report to stdout."""
    for part in data_check_report(check):
        stdout_console.print(part, soft_wrap=isinstance(part, Text))


def data_check_report(check: DataCheck) -> Iterator[RenderableType]:
    """The tables and lines of the report, the verdict last."""
    yield Text(", ".join(printable(name, 400) for name in check.files), "bold")
    yield _formats_table(check)
    if check.lengths and check.lengths.by_column:
        yield _lengths_table(check.lengths)
    yield _warnings_table(check)
    if check.problems:
        yield _problem_kinds_table(check)
        count = len(check.problems)
        yield Text(f"The first {count} problems" if count > 1 else "The problem", "bold")
        yield from map(_problem_text, check.problems)
    yield from _verdict(check)


def _verdict(check: DataCheck) -> Iterator[Text]:
    num_problems = check.problem_kinds.total()
    if not check.pairs and not check.completions:
        yield Text("\nNo pairs to train on.", "bold red")
    elif num_problems:
        advice = "fix the rows, or leave them out with `train --bad-rows skip`."
        yield Text(f"\n{plural(num_problems, 'problem')}: {advice}", "bold red")
    elif check.completions:
        yield Text(f"\nNo problems: {check.completions:,} single completions to train on.", "bold green")
        yield Text("Use --loss kto, bco or apo_zero_unpaired if they have labels, else --loss sft.")
    else:
        yield Text(f"\nNo problems: {check.pairs:,} pairs to train on.", "bold green")


def _table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _formats_table(check: DataCheck) -> Table:
    table = _table("Rows", "format", numbers=("count",))
    for row_format, count in check.row_formats.most_common():
        table.add_row(row_format, f"{count:,}")
    if bad := check.rows - check.row_formats.total():
        table.add_row("(not readable)", f"{bad:,}")
    table.add_section()
    table.add_row("rows", f"{check.rows:,}")
    name, count = ("completions", check.completions) if check.completions else ("pairs", check.pairs)
    table.add_row(name, f"{count:,}")
    return table


def _lengths_table(lengths: TokenLengths) -> Table:
    table = _table("Tokens", "", numbers=tuple(QUANTILES))
    for name, quantiles in lengths.quantiles().items():
        table.add_row(name, *(f"{value:,}" for value in quantiles.values()))
    return table


def _warnings_table(check: DataCheck) -> Table:
    table = _table("Warnings", "", numbers=("count",))
    table.add_column("first on line", overflow="fold")

    def add(warning: str, occurrences: Occurrences) -> None:
        has_several_files = len(check.files) > 1
        lines = [
            f"{printable(Path(where.file).name)}:{where.line}" if has_several_files else f"{where.line}"
            for where in occurrences.first
        ]
        if occurrences.count > len(occurrences.first):
            lines.append("...")
        table.add_row(Text(warning), f"{occurrences.count:,}", Text(", ".join(lines)))

    add("duplicates of an earlier example", check.duplicates())
    if check.rows_without_pairs.count:
        add("rows without a pair (ties, or no judgement)", check.rows_without_pairs)
    if check.lengths:
        add(f"truncated at --max-length {check.lengths.max_length:,}", check.lengths.truncated)
    for kind, occurrences in check.warnings.by_kind.items():
        add(f"{describe(kind, occurrences)}. {kind.hint}", occurrences)
    return table


def _problem_text(error: RowError) -> Text:
    # A Text, so that brackets in a row are not markup; file and line come first, for terminals that link them.
    text = Text.assemble((str(error.where), "cyan"), ": ", (f"`{error.field}`: " if error.field else "", "bold"))
    text.append(error.message)
    if error.hint:
        text.append(f"\n    {error.hint}", "dim")
    return text


def _problem_kinds_table(check: DataCheck) -> Table:
    table = _table("Problems by kind", "kind", numbers=("count",))
    for kind, count in check.problem_kinds.most_common():
        table.add_row(kind, f"{count:,}")
    return table
