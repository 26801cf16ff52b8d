"""Judges that are Python functions, named as path/to/file.py:name."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UserError, Where
from mlx_dpo.judges.judge import Answer, Comparison, IndexedValues, Judge, JudgeSpec, ScalarJudge
from mlx_dpo.utils.stop_flag import check_stop
from mlx_dpo.utils.user_code import load_from_file

HINT = (
    "A judge is `def name(prompt, first, second)`, which returns 1 if the first answer is better, 0 if not, or 0.5; "
    "or `def name(prompt, answer)`, which returns a score."
)


class _CallsFunction:
    """What judges that call a function have in common.

    Args:
        function: the function.
        name: shown in tables and messages.
        where: the function's file, for messages.
        identity: all that the results depend on; None if that is unknown.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, where: Where | None = None, identity: str | None = None
    ) -> None:
        self.name, self._call, self._identity = name, _UserFunction(function, name, where), identity

    @property
    def identity(self) -> str | None:
        """The name of the function and a digest of its file."""
        return self._identity


class FunctionJudge(_CallsFunction, Judge):
    """Calls a function with the prompt, the first answer and the second answer, all as text.

    The function returns a number from 0 to 1, or None for no verdict.
    """

    @classmethod
    def accepts(cls, text: str) -> bool:
        """FILE.py:NAME."""
        return ".py:" in text

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> Judge:
        """Load the function from its file; what it takes decides between this class and `ScoringFunctionJudge`."""
        function, where = load_from_file(spec.text, field="judge", hint=HINT)
        name = spec.text.rpartition(":")[2]
        if not callable(function):
            raise UserError(f"there is no function {name!r} in the file", where=where, field="judge", hint=HINT)
        digest = hashlib.blake2b(Path(where.file).read_bytes(), digest_size=16).hexdigest()
        judge_class = ScoringFunctionJudge if _takes_one_answer(function, name, where) else cls
        return judge_class(function, spec.text, where, f"function {name} {digest}")

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Call the function once per comparison."""
        return [verdict for values in self.iter_verdicts(comparisons) for verdict in values.values()]

    def iter_verdicts(self, comparisons: Sequence[Comparison]) -> Iterator[IndexedValues]:
        """Call the function once per comparison, in their order."""
        for i, comparison in enumerate(comparisons):
            verdict = self._call(comparison.prompt_text, comparison.first, comparison.second)
            if verdict is not None and not 0 <= verdict <= 1:
                raise self._call.error(f"returns {verdict:g}, not a number from 0 to 1")
            yield {i: verdict}


class ScoringFunctionJudge(_CallsFunction, ScalarJudge):
    """Calls a function with the prompt and an answer, both as text, which returns a finite number or None for none."""

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """Call the function once per answer."""
        return [score for values in self.iter_scores(answers) for score in values.values()]

    def iter_scores(self, answers: Sequence[Answer]) -> Iterator[IndexedValues]:
        """Call the function once per answer, in their order."""
        for i, answer in enumerate(answers):
            score = self._call(answer.prompt_text, answer.completion)
            if score is not None and not math.isfinite(score):
                raise self._call.error(f"returns {score:g}, not a finite number")
            yield {i: score}


def judge_from_function(function: Callable[..., Any]) -> Judge:
    """Make a judge of a function in memory: (prompt, answer) to a score, or (prompt, first, second) to a verdict.

    Raises:
        UserError: it takes other arguments.
    """
    name = getattr(function, "__qualname__", repr(function))
    judge_class = (
        ScoringFunctionJudge if _takes_one_answer(function, name, Where("a function in memory")) else FunctionJudge
    )
    return judge_class(function, name)


class _UserFunction:
    """A function that is not ours: what goes wrong in it is a `UserError` that names it."""

    def __init__(self, function: Callable[..., Any], name: str, where: Where | None) -> None:
        self.function, self.name, self.where = function, name, where

    def __call__(self, *texts: str) -> float | None:
        check_stop()
        try:
            result = self.function(*texts)
            return None if result is None else float(result)
        except Exception as error:
            raise self.error(f"fails: {type(error).__name__}: {error}") from error

    def error(self, message: str) -> UserError:
        return UserError(f"{self.name} {message}", where=self.where, field="judge", hint=HINT)


def _takes_one_answer(function: Callable[..., Any], name: str, where: Where) -> bool:
    """Whether a function takes a prompt and one answer, rather than two. Raises `UserError` if it takes neither."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in signature.parameters.values() if p.kind in positional and p.default is p.empty]
    num_texts = 2 if len(required) == 2 else 3
    try:
        signature.bind(*[""] * num_texts)
    except TypeError:
        message = f"{name}{signature} takes neither (prompt, first, second) nor (prompt, answer)"
        raise UserError(message, where=where, field="judge", hint=HINT) from None
    return num_texts == 2
