"""What a judge is: it says of two answers to a prompt how likely the first is the better one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_dpo.data.conversations import TextOrMessages


@dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt, in the order a judge sees them."""

    prompt: TextOrMessages
    first: str
    second: str

    @property
    def swapped(self) -> Comparison:
        """The other order."""
        return Comparison(self.prompt, self.second, self.first)

    @property
    def prompt_text(self) -> str:
        """The prompt as one text; of a conversation, its turns under their roles."""
        if isinstance(self.prompt, str):
            return self.prompt
        said = [(str(turn["role"]), str(turn.get("content") or "")) for turn in self.prompt]
        return said[0][1] if len(said) == 1 else "\n\n".join(f"{role}: {content}" for role, content in said)


class Judge(ABC):
    """Judges matches.

    Attributes:
        name: for people.
        sees_order: whether a verdict may depend on which answer comes first, so that both orders are to be asked.
    """

    name: str
    order_sensitive: bool = True

    def check(self) -> None:  # noqa: B027
        """Raise `UserError` where it can't be asked, before there is much to lose; at most one question."""

    @abstractmethod
    def verdicts(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """Of each: 1 where the first answer is better, 0 where the second is, 0.5 where neither, or anything between.

        None where the judge gave no verdict that could be read.
        """
