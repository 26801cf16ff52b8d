"""Exceptions. The message of a `UserError` says what is wrong, where, and what to do next.

The command line prints a `UserError` as its message and exits with code 2; other exceptions are faults of the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Where:
    """A location in a user's file.

    Attributes:
        file: name of the file.
        line: number of the line, from 1; None if unknown.
    """

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class UserError(Exception):
    """A mistake in what the user provided.

    Args:
        message: what is wrong, one sentence without a full stop.
        where: the file and line with the mistake.
        field: the key of the row or of the config that is wrong.
        hint: what to do next.
    """

    def __init__(
        self, message: str, *, where: Where | None = None, field: str | None = None, hint: str | None = None
    ) -> None:
        self.message, self.where, self.field, self.hint = message, where, field, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        field = f"`{self.field}`: " if self.field else ""
        hint = f"\n{self.hint}" if self.hint else ""
        return f"{place}{field}{self.message}{hint}"

    def amend(self, *, field: str | None = None, hint: str | None = None) -> None:
        """Replace the field or the hint in place: the error stays of its class, and keeps its traceback."""
        self.field, self.hint = field or self.field, hint or self.hint
        self.args = (str(self),)

    def to_mapping(self) -> dict[str, Any]:
        """Return the error as plain values, to send to another process."""
        where = None if self.where is None else asdict(self.where)
        return {"message": self.message, "where": where, "field": self.field, "hint": self.hint}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make an error from the result of `to_mapping`."""
        return cls(**{**values, "where": values["where"] and Where(**values["where"])})


class RowError(UserError):
    """A row of a data file that can't be used.

    Args:
        kind: groups similar problems in reports.
    """

    def __init__(
        self, message: str, *, kind: str, where: Where | None = None, field: str | None = None, hint: str | None = None
    ) -> None:
        self.kind = kind
        super().__init__(message, where=where, field=field, hint=hint)

    def to_mapping(self) -> dict[str, Any]:
        """Return the error as plain values, with its kind."""
        return {**super().to_mapping(), "kind": self.kind}


class Diverged(UserError):
    """Several steps in a row had a loss or a gradient that is not finite."""


class GaveUp(Exception):
    """The training process crashed too often to be restarted once more."""


class RankLost(Exception):
    """The connection to another rank is lost, or it can't be reached."""


class Interrupted(Exception):
    """A stop was requested; the run finished its step and saved everything.

    Args:
        step: optimizer steps done.
        checkpoint: folder of the last checkpoint.
        exit_code: 128 plus the number of the signal that requested the stop.
    """

    def __init__(self, step: int, checkpoint: str, exit_code: int = 130) -> None:
        self.step, self.checkpoint, self.exit_code = step, checkpoint, exit_code
        super().__init__(f"stopped after step {step}; saved in {checkpoint}")
