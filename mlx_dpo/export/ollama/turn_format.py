"""The texts that a chat template puts around the turns of a conversation, without the program that puts them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from mlx_dpo.data.messages import Message


class SystemPlace(Enum):
    """Where a template puts the system message."""

    OWN_TURN = "before the first turn"
    FIRST_USER = "in the first user turn"
    LAST_USER = "in the last user turn"


@dataclass(frozen=True)
class TurnFormat:
    """What stands between the texts of a conversation of user and assistant turns that a user turn ends.

    Attributes:
        opening: before the first turn, where there is no system message; with `SystemPlace.FIRST_USER` before the first
            user's text, instead of `user_prefix`.
        user: before and after a user's text.
        assistant: before and after the assistant's text.
        generation_prompt: after the last turn.
        system: before and after the system message: with `OWN_TURN` and `FIRST_USER` instead of `opening`, with
            `LAST_USER` between the prefix and the text of the last user turn. None if the template takes none.
        system_place: where the system message is.
    """

    opening: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation_prompt: str
    system: tuple[str, str] | None
    system_place: SystemPlace

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation that a user turn ends; a system message, if any, comes first.

        This is what the template of `go_template` renders too.
        """
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        opening = self.opening
        system_text = "" if system is None or self.system is None else system.join(self.system)
        if system_text and self.system_place is not SystemPlace.LAST_USER:
            opening = system_text
        turns = [message for message in messages if message["role"] != "system"]
        text = opening
        for index, turn in enumerate(turns):
            prefix, suffix = self.user if turn["role"] == "user" else self.assistant
            if index == 0 and self.system_place is SystemPlace.FIRST_USER:
                prefix = ""
            if index == len(turns) - 1 and self.system_place is SystemPlace.LAST_USER:
                prefix += system_text
            text += prefix + turn["content"] + suffix
        return text + self.generation_prompt

    def without_start(self, start: str) -> TurnFormat:
        """The format without a text that every conversation begins with, such as a token that llama.cpp adds itself."""
        starts = [self.opening]
        system = self.system
        if system is not None and self.system_place is not SystemPlace.LAST_USER:
            starts.append(system[0])
            system = (system[0].removeprefix(start), system[1])
        if not all(text.startswith(start) for text in starts):
            return self
        return replace(self, opening=self.opening.removeprefix(start), system=system)
