"""A prompt and one or two answers to it, from whatever form these have in a row.

Texts stay texts if all are; anything else becomes lists of messages. Errors are `RowError`s without a
location; `parse_examples` adds it.
"""

from __future__ import annotations

from typing import Any

from mlx_dpo.data.implicit_text import common_prompt_length
from mlx_dpo.data.json_values import check_text, json_type_name, printable
from mlx_dpo.data.messages import (
    Message,
    first_difference,
    is_empty_message,
    is_hh_dialogue,
    parse_hh_dialogue,
    parse_messages,
)
from mlx_dpo.errors import RowError

TextOrMessages = list[Message] | str
NamedValue = tuple[str, Any]  # a value, after the name that complaints give it
NamedMessages = tuple[str, list[Message]]
PromptAndPair = tuple[TextOrMessages, TextOrMessages, TextOrMessages]


def split_pair(prompt: NamedValue | None, chosen: NamedValue, rejected: NamedValue) -> PromptAndPair:
    """Return (prompt, chosen, rejected), all texts or all messages.

    Args:
        prompt: (column, value); None if it is the common start of both completions.
        chosen: (column, value).
        rejected: (column, value).

    Raises:
        RowError: a value is invalid or empty, or there is no prompt.
    """
    for name, value in (chosen, rejected) if prompt is None else (prompt, chosen, rejected):
        check_text_or_messages(name, value)
    if all(isinstance(value, str) and is_hh_dialogue(value) for _, value in (prompt or chosen, chosen, rejected)):
        chosen, rejected = ((name, parse_hh_dialogue(text)) for name, text in (chosen, rejected))
    are_texts = isinstance(chosen[1], str) and isinstance(rejected[1], str)
    if prompt is None:
        return (
            _split_implicit_text(chosen, rejected)
            if are_texts
            else _split_implicit(_named_messages(chosen), _named_messages(rejected))
        )
    if are_texts and isinstance(prompt[1], str) and not is_hh_dialogue(prompt[1]):
        return prompt[1], chosen[1], rejected[1]
    return _split_explicit(prompt, _named_messages(chosen), _named_messages(rejected))


def split_completion(prompt: NamedValue | None, completion: NamedValue) -> tuple[TextOrMessages, TextOrMessages]:
    """(prompt, completion), both texts or both messages. Without a prompt, it is all turns before the last."""
    if prompt is not None:
        return split_pair(prompt, completion, completion)[:2]
    name, value = completion
    check_text_or_messages(name, value)
    turns = (
        parse_hh_dialogue(value) if isinstance(value, str) and is_hh_dialogue(value) else _named_messages(completion)[1]
    )
    answer = _completion_messages((name, turns), len(turns) - 1)
    if not turns[:-1]:
        raise RowError("is an answer without a prompt before it", kind="no prompt", field=name)
    return turns[:-1], answer


def check_text_or_messages(name: str, value: Any) -> None:
    """Raise `RowError` if a value is neither text nor messages, or is empty."""
    if isinstance(value, str):
        if not value or value.isspace():
            raise RowError("is empty", kind="empty", field=name)
        check_text(value, name)
    elif not isinstance(value, (dict, list, tuple)):
        raise RowError(f"must be text or messages, not {json_type_name(value)}", kind="type", field=name)


def as_messages(value: TextOrMessages) -> list[Message]:
    """A completion as messages."""
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else value


def _named_messages(named: NamedValue) -> NamedMessages:
    name, value = named
    return name, as_messages(value) if isinstance(value, str) else parse_messages(value, name)


def prompt_messages(name: str, value: Any) -> list[Message]:
    """The turns of a prompt: a text, a dialogue as HH writes it, or messages. Raises `RowError`."""
    if not isinstance(value, str):
        turns = parse_messages(value, name)
    elif is_hh_dialogue(value):
        turns = parse_hh_dialogue(value)
        if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
            turns.pop()
    else:
        return [{"role": "user", "content": value}]
    if is_empty_message(turns[-1]):
        raise RowError("ends with an empty turn", kind="empty", field=name)
    return turns


def _split_explicit(prompt: NamedValue, chosen: NamedMessages, rejected: NamedMessages) -> PromptAndPair:
    """A row with a prompt: chosen and rejected are answers to it, or whole conversations that begin with it."""
    name, value = prompt
    turns = prompt_messages(name, value)
    n = len(turns)
    if chosen[1][0]["role"] == rejected[1][0]["role"] == "assistant":
        return turns, _completion_messages(chosen), _completion_messages(rejected)
    if chosen[1][:n] == turns == rejected[1][:n]:
        return turns, _completion_messages(chosen, n), _completion_messages(rejected, n)
    if isinstance(value, str):
        start, chosen_answer, rejected_answer = _split_implicit(chosen, rejected, has_prompt=True)
        contents = {message["content"].strip() for message in start if isinstance(message, dict)}
        if all(turn["content"].strip() in contents for turn in turns):
            return start, chosen_answer, rejected_answer
    odd = max((chosen, rejected), key=lambda side: (side[1][0]["role"] != "assistant", side[1][:n] != turns))
    first = odd[1][0]
    hint = "chosen and rejected are the assistant's answers, or whole conversations that begin with the prompt."
    raise RowError(
        f"starts with a turn of `{printable(first['role'])}`, and does not repeat the prompt either",
        kind="roles",
        field=odd[0],
        hint=f"{first_difference((name, turns), odd)} {hint}".strip(),
    )


def _completion_messages(named: NamedMessages, start: int = 0) -> list[Message]:
    """The turns from `start` on, checked to be an answer of the assistant."""
    name, turns = named[0], named[1][start:]
    if not turns:
        raise RowError("ends where the prompt ends, without an answer", kind="empty", field=name)
    for turn, at in ((turns[0], "start"), (turns[-1], "end")):
        if turn["role"] != "assistant":
            message = f"must {at} with an assistant turn, not one of `{printable(turn['role'])}`"
            raise RowError(message, kind="roles", field=name)
    if is_empty_message(turns[-1]):
        raise RowError("is empty", kind="empty", field=name)
    return turns


def _split_implicit(chosen: NamedMessages, rejected: NamedMessages, *, has_prompt: bool = False) -> PromptAndPair:
    """Two conversations: the prompt is their longest common start that leaves each an answer of the assistant."""
    first, second = chosen[1], rejected[1]
    last = min(len(first), len(second)) - 1
    start = next((i for i in range(last) if first[i] != second[i]), last)
    while start and not first[start]["role"] == second[start]["role"] == "assistant":
        start -= 1
    if not start:
        alike = "chosen and rejected don't begin with the same turns before an assistant's answer"
        difference, hint = first_difference(chosen, rejected), "Give a `prompt`, or both as whole conversations."
        if has_prompt:
            raise RowError(alike, kind="roles", field=chosen[0], hint=difference or hint)
        message = f"there is no prompt, and {alike}"
        raise RowError(message, kind="no prompt", hint=f"{difference} {hint}".strip())
    return first[:start], _completion_messages(chosen, start), _completion_messages(rejected, start)


def _split_implicit_text(chosen: NamedValue, rejected: NamedValue) -> PromptAndPair:
    """Two texts: the prompt is their common prefix, up to a border between words."""
    first, second = chosen[1], rejected[1]
    start = common_prompt_length(first, second)
    if not first[:start].strip():
        hint = "Give a `prompt`."
        message = "there is no prompt, and chosen and rejected don't begin with the same words"
        raise RowError(message, kind="no prompt", hint=hint)
    for name, text in (chosen, rejected):
        if not text[start:].strip():
            raise RowError("is empty after the part that it shares with the other completion", kind="empty", field=name)
    return first[:start], first[start:], second[start:]
