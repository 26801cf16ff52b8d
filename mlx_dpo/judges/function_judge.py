"""A judge that is a Python function, named as path/to/file.py:name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.judges.judge import Comparison, Judge, JudgeSpec
from mlx_dpo.utils.user_code import load_from_file

HINT = "A judge is `def name(prompt, first, second)`; it returns 1 if the first answer is better, 0 if not, or 0.5."


class FunctionJudge(Judge):
    """Calls a function with the prompt, the first answer and the second answer, all as text.

    Args:
        function: returns a number from 0 to 1, or None for no verdict.
        name: shown in tables and messages.
        where: the function's file, for messages.
    """

    def __init__(self, function: Callable[[str, str, str], Any], name: str, where: Where | None = None) -> None:
        self.function, self.name, self._where = function, name, where

    @classmethod
    def accepts(cls, text: str) -> bool:
        """FILE.py:NAME."""
        return ".py:" in text

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> FunctionJudge:
        """Load the function from its file."""
        function, where = load_from_file(spec.text, field="judge", hint=HINT)
        if not callable(function):
            name = spec.text.rpartition(":")[2]
            raise UserError(f"there is no function {name!r} in the file", where=where, field="judge", hint=HINT)
        return cls(function, spec.text, where)

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Call the function once per comparison."""
        return [self._verdict(comparison) for comparison in comparisons]

    def _verdict(self, comparison: Comparison) -> float | None:
        try:
            result = self.function(comparison.prompt_text, comparison.first, comparison.second)
            verdict = None if result is None else float(result)
        except Exception as error:
            message = f"{self.name} fails: {type(error).__name__}: {error}"
            raise UserError(message, where=self._where, field="judge", hint=HINT) from error
        if verdict is not None and not 0 <= verdict <= 1:
            message = f"{self.name} returns {result!r}, not a number from 0 to 1"
            raise UserError(message, where=self._where, field="judge", hint=HINT)
        return verdict
