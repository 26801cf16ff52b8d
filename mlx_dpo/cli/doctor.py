"""The command `mlx-dpo doctor`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mlx_dpo.cli.config_options import JsonFlag
from mlx_dpo.cli.console import SafeConsole, print_json, print_tables, print_text, stderr_console, stdout_console
from mlx_dpo.errors import UserError

if TYPE_CHECKING:
    from mlx_dpo.doctor.check import CheckResult
    from mlx_dpo.doctor.machine_facts import MachineFacts
    from mlx_dpo.utils.progress import Progress

    Output = Callable[[MachineFacts, list[CheckResult], bool], None]  # the last: whether all checks were run


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the self-tests that take seconds.")] = False,
    bug_report: Annotated[
        bool, typer.Option("--bug-report", help="Print Markdown to paste into a bug report; it names no one.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Check this machine: hardware, macOS, versions, disk, the Hub, and what training computes on it.

    Lists what the machine has and what each check found, with advice for what is wrong. The exit code is 1 if a check
    failed; a warning leaves training possible. Nothing is changed, and no token is printed.

    Examples:
      mlx-dpo doctor
      mlx-dpo doctor --quick
      mlx-dpo doctor --bug-report > report.md
    """
    if json and bug_report:
        raise UserError("--json and --bug-report print different things: choose one", field="bug_report")
    output = _print_json if json else _print_bug_report if bug_report else None
    if any(_is_failure(result) for result in _run(output, quick=quick, shows_user=not bug_report)):
        raise typer.Exit(1)


def _run(output: Output | None, *, quick: bool, shows_user: bool) -> list[CheckResult]:
    """Run the checks and print what they found: row by row, or at the end by `output`; after Ctrl-C what is known."""
    from mlx_dpo.cli.tables.doctor_table import facts_table, rows_of_result
    from mlx_dpo.doctor.doctor_run import run_doctor
    from mlx_dpo.doctor.machine_facts import read_machine

    results: list[CheckResult] = []
    is_complete = False
    with ExitStack() as spinner:
        progress = _progress(spinner, stderr_console if output else stdout_console)
        progress.begin("Looking at the machine")
        facts = read_machine()
        if output is None:
            print_tables([facts_table(facts)])
        try:
            for result in run_doctor(facts, quick=quick, shows_user=shows_user, progress=progress):
                results.append(result)
                if output is None:
                    print_tables(rows_of_result(results))
            is_complete = True
        finally:
            spinner.close()
            (output or _print_verdict)(facts, results, is_complete)
    return results


def _progress(spinner: ExitStack, console: SafeConsole) -> Progress:
    """A spinner with the name of the check that runs; where the output is no terminal the rows are enough."""
    from mlx_dpo.reporting.phase_progress import PhaseProgress
    from mlx_dpo.utils.progress import NO_PROGRESS

    return spinner.enter_context(PhaseProgress(console)) if console.is_terminal else NO_PROGRESS


def _print_json(facts: MachineFacts, results: list[CheckResult], is_complete: bool) -> None:
    from mlx_dpo.doctor.doctor_run import doctor_mapping

    print_json(doctor_mapping(facts, results, is_complete=is_complete))


def _print_bug_report(facts: MachineFacts, results: list[CheckResult], is_complete: bool) -> None:
    from mlx_dpo.doctor.bug_report import bug_report

    print_text(bug_report(facts, results, is_complete=is_complete))


def _print_verdict(facts: MachineFacts, results: list[CheckResult], is_complete: bool) -> None:
    from mlx_dpo.cli.tables.doctor_table import advice_lines, verdict_text
    from mlx_dpo.doctor.check import COMMAND_LINE

    advice = list(advice_lines(results))
    if advice:
        print_tables([Text("\nWhat to do", "bold")])
    for line in advice:
        stdout_console.print(line, soft_wrap=line.plain.startswith(COMMAND_LINE[1:]))
    print_tables([Text(), verdict_text(results, is_complete=is_complete)])


def _is_failure(result: CheckResult) -> bool:
    from mlx_dpo.doctor.check import CheckStatus

    return result.outcome.status is CheckStatus.FAILED
