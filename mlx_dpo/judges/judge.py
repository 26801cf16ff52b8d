"""The interface of a judge, which says which of two answers to a prompt is better."""

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
    """Two answers to one prompt, in the order in which a judge sees them."""

    prompt: TextOrMessages
    first: str
    second: str

    @property
    def swapped(self) -> Comparison:
        """The same answers in the other order."""
        return Comparison(self.prompt, self.second, self.first)

    @property
    def prompt_text(self) -> str:
        """The prompt as one text; the turns of a conversation stand under their roles."""
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

    A subclass in a module of this package is available to --judge for the values that its `accepts` takes.

    Attributes:
        name: shown in tables and messages.
        order_sensitive: whether a verdict may depend on which answer comes first, so that both orders are judged.
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

        Returns:
            For each comparison a number from 0, the second answer is better, to 1, the first is; 0.5 is a tie. None if
            the judge gave no readable verdict.

        Raises:
            UserError: the judge fails.
        """
