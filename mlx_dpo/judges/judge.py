"""The interface of a judge, which says which of two completions of a prompt is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_dpo.data.conversations import TextOrMessages

# (adapter folder, base model, rows with `prompt` and `completions`) -> [completions] rewards of each row, or None
AdapterRewards = Callable[[str, str, Sequence[dict[str, Any]]], Sequence[np.ndarray | None]]


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
        """The prompt as one text; the turns of a conversation follow their roles."""
        if isinstance(self.prompt, str):
            return self.prompt
        turns = [(str(turn["role"]), str(turn.get("content") or "")) for turn in self.prompt]
        return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)


@dataclass(frozen=True)
class JudgeSpec:
    """The options from which a judge is made.

    Attributes:
        text: the value of --judge.
        model: the value of --judge-model, if any.
        api_key_env: environment variable that holds an endpoint's API key.
        adapter_rewards: computes the implicit rewards of an adapter; see `evaluation.implicit_rewards`.
    """

    text: str
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    adapter_rewards: AdapterRewards | None = None


class Judge(ABC):
    """Base class of judges.

    A subclass in a module of this package is used for the values of --judge for which its `accepts` returns True; of
    several such classes, for the first in the order of module names.

    Attributes:
        name: shown in tables and messages.
        order_sensitive: whether a verdict may depend on which completion comes first; if so, both orders are judged.
    """

    name: str
    order_sensitive: bool = True

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
