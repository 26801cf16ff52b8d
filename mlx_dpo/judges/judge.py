"""The interfaces of judges: which of two completions is better, and, for scalar judges, a score for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages

# (adapter folder, base model, rows with `prompt` and `completions`, policy: the model with the adapter, or None)
# -> [completions] rewards of each row, or None
AdapterRewards = Callable[..., Sequence[np.ndarray | None]]
IndexedValues = dict[int, float | None]  # verdicts or scores by index; None: the judge gave none


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt, in the order in which a judge sees them.

    Attributes:
        prompt: a text, or messages.
        first: the completion shown first; a verdict of 1 means that it is better.
        second: the other one; a verdict of 0 means that it is better.
    """

    prompt: TextOrMessages
    first: str
    second: str

    @property
    def swapped(self) -> Comparison:
        """The same completions in the other order."""
        return Comparison(self.prompt, self.second, self.first)

    @property
    def prompt_text(self) -> str:
        """The prompt as one text."""
        return plain_text(self.prompt)


@dataclass(frozen=True)
class Answer:
    """A completion of a prompt, for a scalar judge.

    Attributes:
        prompt: a text, or messages.
        completion: the completion.
    """

    prompt: TextOrMessages
    completion: str

    @property
    def prompt_text(self) -> str:
        """The prompt as one text."""
        return plain_text(self.prompt)


def plain_text(value: TextOrMessages) -> str:
    """A prompt or a completion as one text; the turns of a longer conversation follow their roles."""
    if isinstance(value, str):
        return value
    turns = [(str(turn["role"]), str(turn.get("content") or "")) for turn in value]
    return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)


@dataclass(frozen=True)
class JudgeSpec:
    """The options from which a judge is made.

    Attributes:
        text: the value of --judge.
        model: the value of --judge-model, if any.
        api_key_env: environment variable that holds an endpoint's API key.
        adapter_rewards: computes the implicit rewards of an adapter; see `evaluation.implicit_rewards`.
        rubric: the prompt for a judge that is a language model; see `rubric_prompt`. None: the built-in one.
    """

    text: str
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    adapter_rewards: AdapterRewards | None = None
    rubric: str | None = None


class Judge(ABC):
    """Base class of judges.

    A subclass in a module of this package is used for the values of --judge for which its `accepts` returns True; of
    several such classes, for the first in the order of module names.

    Attributes:
        name: shown in tables and messages.
        order_sensitive: whether a verdict may depend on which completion comes first; if so, both orders are judged.
        is_scalar: whether it scores completions one by one; see `ScalarJudge`.
        takes_rubric: whether it is a language model, whose prompt the user may write.
    """

    name: str
    order_sensitive: bool = True
    is_scalar: bool = False
    takes_rubric: bool = False

    @property
    def identity(self) -> str | None:
        """All that its verdicts depend on beside the completions, as a text; None where that is unknown.

        Verdicts of a judge with an identity may be cached on disk.
        """
        return None

    def session(self) -> AbstractContextManager[object]:
        """A context in which a judge that loads a model keeps it in memory, instead of loading it for every call."""
        return nullcontext()

    @classmethod
    def accepts(cls, text: str) -> bool:
        """Whether a value of --judge names a judge of this class."""
        return False

    @classmethod
    def from_spec(cls, spec: JudgeSpec) -> Judge:
        """Make the judge that the options describe.

        Raises:
            UserError: an option is missing or wrong.
        """
        raise NotImplementedError

    def check(self) -> None:  # noqa: B027
        """Check with at most one request that the judge works, before long computations rely on it.

        Raises:
            UserError: it does not work.
        """

    @abstractmethod
    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Judge comparisons.

        A verdict is not an index, as TRL's pairwise judges return: 1 means that the first completion is better.

        Args:
            comparisons: the completions to compare.

        Returns:
            [comparisons], in their order: from 0 (the second completion is better) to 1 (the first is better), 0.5 for
            a tie; None if the judge gave no readable verdict.

        Raises:
            UserError: the judge fails.
        """

    def iter_verdicts(self, comparisons: Sequence[Comparison]) -> Iterator[IndexedValues]:
        """Judge comparisons, and yield verdicts by index, in any order; those that come together in one mapping.

        A judge that has some verdicts before others overrides it: where it fails, verdicts before that are kept.
        """
        yield dict(enumerate(self.verdicts(comparisons)))

    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """Score completions, if the judge is scalar; see `ScalarJudge.scores`."""
        raise NotImplementedError

    def iter_scores(self, answers: Sequence[Answer]) -> Iterator[IndexedValues]:
        """Score completions, and yield scores by index, as they come; see `iter_verdicts`."""
        yield dict(enumerate(self.scores(answers)))


class ScalarJudge(Judge):
    """Base class of judges that give every completion a score; of two completions the one with the higher is better."""

    order_sensitive = False
    is_scalar = True

    @abstractmethod
    def scores(self, answers: Sequence[Answer]) -> list[float | None]:
        """Score completions.

        Args:
            answers: the completions with their prompts.

        Returns:
            [answers] finite scores, in their order; None if the judge has none. Scores of the same prompt's completions
            are comparable.

        Raises:
            UserError: the judge fails.
        """

    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Compare scores; equal completions tie, whatever rounding makes of their scores."""
        return verdicts_by_scores(self, comparisons)


def verdicts_by_scores(judge: Judge, comparisons: Sequence[Comparison]) -> list[float | None]:
    """Compare completions by the scores that a scalar judge gives them; equal completions tie."""
    answers = [Answer(pair.prompt, text) for pair in comparisons for text in (pair.first, pair.second)]
    scores = judge.scores(answers)
    return [
        0.5 if pair.first == pair.second else verdict_from_scores(first, second)
        for pair, first, second in zip(comparisons, scores[::2], scores[1::2], strict=True)
    ]


def verdict_from_scores(first: float | None, second: float | None) -> float | None:
    """The verdict on two completions by their scores: 1 if the first is higher, 0.5 if they are equal, else 0.

    Returns:
        The verdict; None if a score is missing.
    """
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)
