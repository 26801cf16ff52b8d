"""Prompt truncation by messages: drop the oldest turns first, then text, oldest first; template headers stay."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import takewhile

from mlx_dpo.data.messages import SYSTEM_ROLES, Message
from mlx_dpo.errors import RowError

CountTokens = Callable[[list[Message]], int]  # of a prompt of these messages; raises `RowError`


def max_prompt_tokens(max_length: int, longest_completion: int) -> int:
    """Return the number of tokens to which a prompt is truncated: half of the limit, or what the completions leave.

    Args:
        max_length: the limit for prompt and completion together, tokens.
        longest_completion: tokens of the longest completion.
    """
    return max(1, max_length // 2, max_length - longest_completion)


def shorten_prompt(messages: Sequence[Message], room: int, count_tokens: CountTokens) -> list[Message]:
    """The messages of a prompt, shortened to at most `room` tokens if the template allows.

    Turns are dropped, the oldest first, down to the last user turn; the system message stays, and the remaining
    messages begin with a user turn, as templates require. If that is not enough, texts lose their beginning, the oldest
    first and that of the last user turn last; then system text loses its end.

    Args:
        messages: the prompt.
        room: tokens that it may have.
        count_tokens: the tokens of a shorter prompt, headers included.
    """
    shorter, fits = _drop_oldest_turns(messages, room, count_tokens)
    try:
        return shorter if fits else _cut_texts(shorter, room, count_tokens)
    except RowError:  # the template wants the text that it would lose
        return shorter


def _drop_oldest_turns(messages: Sequence[Message], room: int, count_tokens: CountTokens) -> tuple[list[Message], bool]:
    """The messages without as many of the oldest turns as it takes, and whether they fit."""
    system = list(takewhile(lambda message: message["role"] in SYSTEM_ROLES, messages))
    starts = [i for i, m in enumerate(messages) if i > len(system) and m["role"] == "user"]
    if not starts:
        return list(messages), False
    try:
        fitting = bisect_left(starts, True, key=lambda start: count_tokens([*system, *messages[start:]]) <= room)
    except RowError:  # the template wants the turns it would lose
        return list(messages), False
    start = starts[min(fitting, len(starts) - 1)]
    return [*system, *messages[start:]], fitting < len(starts)


def _cut_texts(messages: list[Message], room: int, count_tokens: CountTokens) -> list[Message]:
    for i in _cut_order(messages):
        emptied = _with_shorter_text(messages, i, 0)
        if count_tokens(emptied) <= room:
            return _cut_text(messages, i, room, count_tokens)
        messages = emptied
    return messages


def _cut_text(messages: list[Message], i: int, room: int, count_tokens: CountTokens) -> list[Message]:
    """The messages with as little of message `i` cut as it takes."""
    length = len(messages[i]["content"])

    def fits(cut: int) -> bool:
        return count_tokens(_with_shorter_text(messages, i, length - cut)) <= room

    cut = bisect_left(range(length), True, key=fits)
    return _with_shorter_text(messages, i, length - cut)


def _with_shorter_text(messages: list[Message], i: int, length: int) -> list[Message]:
    """The messages with the last characters of message `i`, or the first ones of system text."""
    text = messages[i]["content"]
    kept = text[:length] if messages[i]["role"] in SYSTEM_ROLES else text[len(text) - length :]
    return [*messages[:i], {**messages[i], "content": kept}, *messages[i + 1 :]]


def _cut_order(messages: Sequence[Message]) -> list[int]:
    """Indices of the messages with text, in the order in which they lose it."""
    last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    continued = len(messages) - 1 if messages[-1]["role"] == "assistant" else -1

    def rank(i: int) -> int:
        return 3 if messages[i]["role"] in SYSTEM_ROLES else 2 if i == continued else 1 if i == last_user else 0

    return sorted((i for i, message in enumerate(messages) if message["content"]), key=lambda i: (rank(i), i))
