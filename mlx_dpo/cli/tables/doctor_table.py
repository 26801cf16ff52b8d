"""The output of `mlx-dpo doctor`: the machine, a row for each check, advice, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlx_dpo.doctor.check import CheckResult, CheckStatus
from mlx_dpo.doctor.machine_facts import MachineFacts
from mlx_dpo.utils.formatting import plural

STYLES = {
    CheckStatus.PASSED: "green",
    CheckStatus.WARNING: "yellow",
    CheckStatus.FAILED: "bold red",
    CheckStatus.SKIPPED: "dim",
}
STATUS_WIDTH, NAME_WIDTH, SECONDS_WIDTH = 7, 22, 6  # columns of the terminal
REPORT_COMMAND = "mlx-dpo doctor --bug-report"


def facts_table(facts: MachineFacts) -> Table:
    """What is known of the machine."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in facts.lines().items():
        table.add_row(label, text)
    return table


def rows_of_result(results: Sequence[CheckResult]) -> Iterator[RenderableType]:
    """The row of the last result, below a heading if it is the first of its group.

    Rows are printed one by one, as the results are known, and so all have the same widths.
    """
    *before, result = results
    if not before or before[-1].group != result.group:
        yield Text(f"\n{result.group.capitalize()}", "bold")
    yield _check_row(result)


def _check_row(result: CheckResult) -> Table:
    """The row of a check."""
    status = result.outcome.status
    style = "dim" if status is CheckStatus.SKIPPED else ""
    return _row(
        Text(status.value, STYLES[status]),
        Text(result.name, style),
        Text(result.outcome.detail, style),
        Text(f"{result.seconds:.1f} s", style),
    )


def _row(*cells: RenderableType) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=STATUS_WIDTH)
    table.add_column(width=NAME_WIDTH, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    table.add_column(width=SECONDS_WIDTH, justify="right")
    table.add_row(*cells)
    return table


def advice_lines(results: Sequence[CheckResult]) -> Iterator[Text]:
    """What to do about each check that was not passed, failures first; a command has a line of its own."""
    order = [CheckStatus.FAILED, CheckStatus.WARNING]
    advised = [result for result in results if result.outcome.advice and result.outcome.status in order]
    for result in sorted(advised, key=lambda result: order.index(result.outcome.status)):
        advice, *commands = (result.outcome.advice or "").splitlines()
        yield Text.assemble((result.name, STYLES[result.outcome.status]), f": {advice}")
        yield from map(Text, commands)


def verdict_text(results: Sequence[CheckResult], *, is_complete: bool = True) -> Text:
    """One line on all checks.

    Args:
        results: those that are known.
        is_complete: whether all checks were run.
    """
    counts = Counter(result.outcome.status for result in results)
    num_failed, num_warnings = counts[CheckStatus.FAILED], counts[CheckStatus.WARNING]
    warnings = f", {plural(num_warnings, 'warning')}" if num_warnings else ""
    if not is_complete:
        return Text(f"Stopped after {plural(len(results), 'check')}: {num_failed} failed{warnings}.", "bold yellow")
    if num_failed:
        advice = f" See above what to do; `{REPORT_COMMAND}` prints a text for a bug report."
        return Text.assemble((f"{plural(num_failed, 'check')} failed{warnings}.", "bold red"), advice)
    text = f"No check failed{warnings}: this machine can train." if warnings else "All is well: this machine can train."
    return Text(text, "bold green")
