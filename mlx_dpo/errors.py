"""What a user did wrong, said in one message: what, where, what to do next.

The command line turns a `UserError` into that message and exit code 2; anything else is our fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a user's file: its name, and the line (from 1) where there is one."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


class UserError(Exception):
    """A mistake in what the user gave us.

    Args:
        message: what is wrong, one sentence without a full stop.
        where: the file, and the line, it is in.
        field: the key of the row or of the config it is about.
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

    def to_mapping(self) -> dict[str, Any]:
        """As plain values, to tell another process."""
        where = None if self.where is None else asdict(self.where)
        return {"message": self.message, "where": where, "field": self.field, "hint": self.hint}

    @classmethod
    def from_mapping(cls, told: Mapping[str, Any]) -> Self:
        """What `to_mapping` gave."""
        return cls(**{**told, "where": told["where"] and Where(**told["where"])})


class RowError(UserError):
    """A row of a data file that can't be read as a preference pair. `kind` groups like complaints."""

    def __init__(
        self, message: str, *, kind: str, where: Where | None = None, field: str | None = None, hint: str | None = None
    ) -> None:
        self.kind = kind
        super().__init__(message, where=where, field=field, hint=hint)

    def to_mapping(self) -> dict[str, Any]:
        return {**super().to_mapping(), "kind": self.kind}


class Diverged(UserError):
    """Step after step had a loss or a gradient that is no finite number."""


class GaveUp(Exception):
    """The training process died again and again."""


class RankLost(Exception):
    """Another process of the group has ended without a word, or can't be reached."""


class Interrupted(Exception):
    """The run was asked to stop and did so after a step, with everything saved."""

    def __init__(self, step: int, checkpoint: str, exit_code: int = 130) -> None:
        """exit_code: 128 and the number of the signal that asked for it."""
        self.step, self.checkpoint, self.exit_code = step, checkpoint, exit_code
        super().__init__(f"stopped after step {step}; saved in {checkpoint}")
