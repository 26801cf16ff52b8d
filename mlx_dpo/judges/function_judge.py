"""A judge that is a Python function, named as path/to/file.py:name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.judges.judge import Comparison, Judge
from mlx_dpo.utils.user_code import load_from_file

HINT = "A judge is `def name(prompt, first, second)` in that file; it gives 1 where the first is better, 0, or 0.5."


class FunctionJudge(Judge):
    """Asks a function of (prompt, first answer, second answer), all texts."""

    def __init__(self, function: Callable[[str, str, str], Any], name: str, where: Where | None = None) -> None:
        self.function, self.name, self._where = function, name, where

    @classmethod
    def load(cls, spec: str) -> FunctionJudge:
        """From path/to/file.py:name. Raises `UserError`."""
        found, where = load_from_file(spec, field="judge", hint=HINT)
        if not callable(found):
            name = spec.rpartition(":")[2]
            raise UserError(f"there is no function {name!r} in the file", where=where, field="judge", hint=HINT)
        return cls(found, spec, where)

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        return [self._verdict(match) for match in comparisons]

    def _verdict(self, comparison: Comparison) -> float | None:
        try:
            said = self.function(comparison.prompt_text, comparison.first, comparison.second)
            verdict = None if said is None else float(said)
        except Exception as error:
            message = f"{self.name} fails: {type(error).__name__}: {error}"
            raise UserError(message, where=self._where, field="judge", hint=HINT) from error
        if verdict is not None and not 0 <= verdict <= 1:
            message = f"{self.name} gives {said!r}, not a number from 0 to 1"
            raise UserError(message, where=self._where, field="judge", hint=HINT)
        return verdict
