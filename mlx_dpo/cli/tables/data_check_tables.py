"""What `mlx-dpo data check` found, for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlx_dpo.data.data_check import QUANTILES, DataCheck, Occurrences, TokenLengths
from mlx_dpo.data.messages import printable
from mlx_dpo.errors import RowError


def data_check_report(survey: DataCheck) -> Iterator[RenderableType]:
    """Everything worth saying, the verdict last."""
    yield Text(", ".join(printable(name, 400) for name in survey.files), "bold")
    yield _rows(survey)
    if survey.lengths and survey.lengths.by_column:
        yield _lengths(survey.lengths)
    yield _notable(survey)
    if survey.problems:
        yield _kinds(survey)
        yield Text(f"The first {len(survey.problems)} problems" if len(survey.problems) > 1 else "The problem", "bold")
        yield from (_problem(error) for error in survey.problems)
    count = survey.problem_kinds.total()
    if not survey.pairs and not survey.completions:
        yield Text("\nNo pairs to train on.", "bold red")
    elif count:
        s = "s" * (count != 1)
        yield Text(f"\n{count:,} problem{s}: mend them, or leave them out with `data convert --skip-bad`.", "bold red")
    else:
        what = f"{survey.completions:,} single completions" if survey.completions else f"{survey.pairs:,} pairs"
        yield Text(f"\nNo problems: {what} to train on.", "bold green")
        if survey.completions:
            yield Text("They go with --loss kto, bco or apo_zero_unpaired where they have labels, and with --loss sft.")


def _table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def _rows(survey: DataCheck) -> Table:
    table = _table("Rows", "shape", numbers=("count",))
    for shape, count in survey.row_formats.most_common():
        table.add_row(shape, f"{count:,}")
    if bad := survey.rows - survey.row_formats.total():
        table.add_row("(not readable)", f"{bad:,}")
    table.add_section()
    table.add_row("rows", f"{survey.rows:,}")
    name, count = ("completions", survey.completions) if survey.completions else ("pairs", survey.pairs)
    table.add_row(name, f"{count:,}")
    return table


def _lengths(lengths: TokenLengths) -> Table:
    table = _table("Tokens", "", numbers=tuple(QUANTILES))
    for name, quantiles in lengths.quantiles().items():
        table.add_row(name, *(f"{value:,}" for value in quantiles.values()))
    return table


def _notable(survey: DataCheck) -> Table:
    table = _table("To know", "", numbers=("count",))
    table.add_column("first on line", overflow="fold")

    def add(what: str, places: Occurrences) -> None:
        several = len(survey.files) > 1
        at = [f"{printable(Path(w.file).name)}:{w.line}" if several else f"{w.line}" for w in places.first]
        more = ["..."] if places.count > len(places.first) else []
        table.add_row(what, f"{places.count:,}", Text(", ".join(at + more)))

    add("duplicates of an earlier one", survey.duplicates())
    add("pairs whose two sides are equal", survey.identical_completions)
    if survey.rows_without_pairs.count:
        add("rows without a pair (all scored alike)", survey.rows_without_pairs)
    if survey.lengths:
        add(f"cut at --max-length {survey.lengths.max_length:,}", survey.lengths.truncated)
        add("prompts that are no prefix under the template", survey.lengths.prefix_mismatches)
    return table


def _problem(error: RowError) -> Text:
    # Text, so that brackets in a row are not taken for markup; on one line, to be clicked on and searched for
    text = Text.assemble((str(error.where), "cyan"), ": ", (f"`{error.field}`: " if error.field else "", "bold"))
    text.append(error.message)
    if error.hint:
        text.append(f"\n    {error.hint}", "dim")
    return text


def _kinds(survey: DataCheck) -> Table:
    table = _table("Problems by kind", "kind", numbers=("count",))
    for kind, count in survey.problem_kinds.most_common():
        table.add_row(kind, f"{count:,}")
    return table
