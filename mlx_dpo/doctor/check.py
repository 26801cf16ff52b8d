"""A check of the machine or of the engine on it, and its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from mlx_dpo.utils.progress import NO_PROGRESS, Progress

ENVIRONMENT_GROUP, ENGINE_GROUP = "environment", "training engine"
COMMAND_LINE = "\n    "  # what a command in an advice begins with: it stands on a line of its own, to be copied


class CheckStatus(StrEnum):
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


def passed(detail: str) -> CheckOutcome:
    """The outcome of a check that found nothing wrong."""
    return CheckOutcome(CheckStatus.PASSED, detail)


def warned(detail: str, advice: str | None = None) -> CheckOutcome:
    """The outcome of a check that found something that costs time or a feature, and leaves training possible."""
    return CheckOutcome(CheckStatus.WARNING, detail, advice)


def failed(detail: str, advice: str | None = None) -> CheckOutcome:
    """The outcome of a check that found a fault."""
    return CheckOutcome(CheckStatus.FAILED, detail, advice)


def skipped(detail: str) -> CheckOutcome:
    """The outcome of a check that does not apply to this machine, with the reason."""
    return CheckOutcome(CheckStatus.SKIPPED, detail)


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

    def to_mapping(self) -> dict[str, Any]:
        """Return the result as plain values: the outcome's beside the name, the group and the seconds."""
        outcome = {**asdict(self.outcome), "status": self.outcome.status.value}
        return {"name": self.name, "group": self.group, **outcome, "seconds": round(self.seconds, 3)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> CheckResult:
        """Make a result from the result of `to_mapping`."""
        outcome = CheckOutcome(CheckStatus(values["status"]), values["detail"], values["advice"])
        return cls(values["name"], values["group"], outcome, values["seconds"])


def run_checks(checks: Iterable[MachineCheck], progress: Progress = NO_PROGRESS) -> Iterator[CheckResult]:
    """Run checks one after another, and yield each result as it is known.

    Args:
        checks: the checks.
        progress: a phase begins with each check, by its name.
    """
    for check in checks:
        progress.begin(check.name)
        began = time.perf_counter()
        try:
            outcome = check.run()
        except Exception as error:  # whatever a broken machine does is what the check is there to report
            outcome = failed(f"{type(error).__name__}: {error}")
        yield CheckResult(check.name, check.group, outcome, time.perf_counter() - began)
