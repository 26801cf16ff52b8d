"""A check of the machine or of the engine on it, and its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum


class CheckStatus(str, Enum):
    """How a check ended. A warning leaves training possible; skipped means that it does not apply to this machine."""

    PASSED = "passed"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CheckOutcome:
    """What a check found.

    Attributes:
        status: how it ended.
        detail: what was seen, with numbers and units.
        advice: what to do next; None if nothing is to be done.
    """

    status: CheckStatus
    detail: str
    advice: str | None = None


@dataclass(frozen=True)
class MachineCheck:
    """A named check of the machine, or of the engine on it.

    Attributes:
        name: short, in lower case, unique; tables and `--json` show it.
        group: heading under which it is listed.
        run: the check itself. An exception that it raises is a failure of the check, with the exception as the detail.
    """

    name: str
    group: str
    run: Callable[[], CheckOutcome]


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check, with its name and how long it took in seconds."""

    name: str
    group: str
    outcome: CheckOutcome
    seconds: float


def run_checks(checks: Sequence[MachineCheck]) -> Iterator[CheckResult]:
    """Run checks one after another, and yield each result as it is known."""
    for check in checks:
        began = time.perf_counter()
        try:
            outcome = check.run()
        except Exception as error:  # whatever a broken machine does is what the check is there to report
            outcome = CheckOutcome(CheckStatus.FAILED, f"{type(error).__name__}: {error}")
        yield CheckResult(check.name, check.group, outcome, time.perf_counter() - began)
