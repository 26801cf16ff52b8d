"""Find the turn format of a chat template by rendering conversations with it, and check that it says all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.examples import Prompt
from mlx_dpo.data.messages import Message
from mlx_dpo.errors import RowError, UserError
from mlx_dpo.export.ollama.turn_format import SystemPlace, TurnFormat
from mlx_dpo.utils.common_prefix import common_prefix_length

# Texts that no template holds. Without space around them, for some templates strip it.
_SYSTEM, _USER_1, _ASSISTANT_1, _USER_2 = "zsz", "zuz1", "zaz1", "zuz2"
_CHECKED_TEXTS = ("Hi", "Two\n\nparagraphs.", "def f(x):\n    return {x: '\"'}", "Grüße, 世界 🙂", "a <b> [c] {{ d }}")


def infer_turn_format(tokenizer: Any) -> TurnFormat | None:
    """Find the turn format of a tokenizer's chat template.

    Args:
        tokenizer: as mlx_lm.load returns it.

    Returns:
        A format that renders conversations of one to three user turns, with and without a system message, as the
        template does; None if there is no chat template or it does more than to put texts around turns.
    """
    if not tokenizer.has_chat_template:
        return None
    probe = _TemplateProbe(tokenizer)
    with suppress(_OtherFormat):
        turn_format = probe.turn_format()
        if all(probe.render(messages) == turn_format.render(messages) for messages in _checked(turn_format)):
            return turn_format
    return None


class _OtherFormat(Exception):
    """A rendering is not made as a `TurnFormat` makes it."""


class _TemplateProbe:
    """Renders conversations with the chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._renderer = ChatRenderer(tokenizer)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """The text of a conversation. Raises `_OtherFormat` if the template refuses it."""
        try:
            chat = self._renderer.as_chat(Prompt(list(messages)))
            assert chat is not None
            text = self._renderer.render(chat, chat.prompt, add_generation_prompt=generation_prompt)
        except (RowError, UserError):
            raise _OtherFormat from None
        if not isinstance(text, str):
            raise _OtherFormat
        return text

    def turn_format(self) -> TurnFormat:
        """The format of three conversations. Raises `_OtherFormat` if there is none."""
        opening, to_assistant, to_user, ending = _split(
            self.render(_conversation(_USER_1, _ASSISTANT_1, _USER_2)), _USER_1, _ASSISTANT_1, _USER_2
        )
        assistant_suffix = self._closing_text([_USER_1, _ASSISTANT_1], (to_user,))
        if assistant_suffix is None:  # then what comes before every user turn, from the first on
            num_shared = common_prefix_length(opening[::-1], to_user[::-1])
            assistant_suffix = to_user[: len(to_user) - num_shared]
        user_suffix = self._closing_text([_USER_1], (to_assistant, ending))
        if user_suffix is None:
            user_suffix = assistant_suffix if to_assistant.startswith(assistant_suffix) else ""
            user_suffix = user_suffix if ending.startswith(user_suffix) else ""
        user_prefix = to_user.removeprefix(assistant_suffix)
        place, system = self._system(opening, to_user, user_prefix)
        return TurnFormat(
            opening=opening if place is SystemPlace.FIRST_USER else opening.removesuffix(user_prefix),
            user=(user_prefix, user_suffix),
            assistant=(to_assistant.removeprefix(user_suffix), assistant_suffix),
            generation_prompt=ending.removeprefix(user_suffix),
            system=system,
            system_place=place,
        )

    def _closing_text(self, texts: list[str], following: tuple[str, ...]) -> str | None:
        """What a conversation without generation prompt ends with, if `following` texts begin with it."""
        with suppress(_OtherFormat):
            text = self.render(_conversation(*texts), generation_prompt=False)
            closing = _split(text, *texts)[-1]
            if all(other.startswith(closing) for other in following):
                return closing
        return None

    def _system(self, opening: str, to_user: str, user_prefix: str) -> tuple[SystemPlace, tuple[str, str] | None]:
        """Where the system message is, and the texts around it.

        Args:
            opening: before the first user's text, without system message.
            to_user: between the assistant's text and the next user's.
            user_prefix: the part of it that belongs to the user turn.
        """
        place = SystemPlace.OWN_TURN if opening.endswith(user_prefix) else SystemPlace.FIRST_USER
        try:
            text = self.render([_message("system", _SYSTEM), *_conversation(_USER_1, _ASSISTANT_1, _USER_2)])
        except _OtherFormat:
            return place, None
        if _SYSTEM not in text:
            return place, None
        if text.find(_SYSTEM) > text.find(_ASSISTANT_1):
            *_, before, after, _ = _split(text, _USER_1, _ASSISTANT_1, _SYSTEM, _USER_2)
            return SystemPlace.LAST_USER, (before.removeprefix(to_user), after)
        before, after, *_ = _split(text, _SYSTEM, _USER_1, _ASSISTANT_1, _USER_2)
        if place is SystemPlace.OWN_TURN and after.endswith(user_prefix):
            return place, (before, after.removesuffix(user_prefix))
        return SystemPlace.FIRST_USER, (before, after)


def _split(text: str, *parts: str) -> list[str]:
    """The texts around parts that occur once and in this order. Raises `_OtherFormat` if they don't."""
    pieces = []
    for part in parts:
        before, separator, text = text.partition(part)
        if not separator or part in text:
            raise _OtherFormat
        pieces.append(before)
    return [*pieces, text]


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _conversation(*texts: str) -> list[Message]:
    """User and assistant turns in alternation."""
    return [_message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]


def _checked(turn_format: TurnFormat) -> Iterator[list[Message]]:
    """Conversations of one to three user turns, with a system message too if the format has one."""
    for num_turns in (1, 3, 5):
        for shift in range(len(_CHECKED_TEXTS)):
            texts = [_CHECKED_TEXTS[(index + shift) % len(_CHECKED_TEXTS)] for index in range(num_turns + 1)]
            yield _conversation(*texts[1:])
            if turn_format.system is not None:
                yield [_message("system", texts[0]), *_conversation(*texts[1:])]
