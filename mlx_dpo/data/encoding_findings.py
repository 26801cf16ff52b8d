"""Finds what a chat template does to rows that their authors may not expect, while they are encoded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from mlx_dpo.data import encoding_warnings as warnings
from mlx_dpo.data.answer_alignment import AlignedAnswer
from mlx_dpo.data.chat_rendering import ChatExample, ChatRenderer
from mlx_dpo.data.messages import SYSTEM_ROLES, Message
from mlx_dpo.errors import RowError

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_SAMPLES = 3  # rows on which it is tried whether the template ignores a field


class FindingsDetector:
    """Finds which of `encoding_warnings` apply to an example. It remembers which fields the template ignores."""

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer, self._special = renderer, renderer.special_tokens
        begin, end = map(re.escape, self._special.thinking_tags)
        self._empty_thinking = re.compile(rf"{begin}\s*{end}")
        # by (fields of the rows, one of them): rows it was tried on, and whether all of them gave the same result
        self._ignored: dict[tuple[tuple[str, ...], str], tuple[int, bool]] = {}

    def of_texts(self, prompt_is_prefix: bool) -> frozenset[str]:
        """Keys of the warnings about an example of plain texts."""
        return frozenset() if prompt_is_prefix else frozenset([warnings.TOKEN_SPANS_PROMPT_END.key])

    def of_chat(self, chat: ChatExample, prompt: str, answers: Sequence[AlignedAnswer]) -> frozenset[str]:
        """Keys of the warnings about an example of messages.

        Args:
            chat: the example.
            prompt: what it renders to for generation.
            answers: its answers, in order.

        Raises:
            RowError: the template renders nothing of an answer.
        """
        for turns, answer in zip(chat.answers, answers, strict=True):
            self._check_rendered(chat, turns, answer)
        return frozenset(kind.key for kind in self._kinds(chat, prompt, answers))

    def _kinds(
        self, chat: ChatExample, prompt: str, answers: Sequence[AlignedAnswer]
    ) -> Iterator[warnings.WarningKind]:
        if not all(answer.prompt_is_prefix for answer in answers):
            yield warnings.PROMPT_NOT_PREFIX
        all_turns = [*chat.prompt, *(turn for turns in chat.answers for turn in turns)]
        if any(self._special.find_in(turn["content"]) for turn in all_turns):
            yield warnings.SPECIAL_TOKENS
        begin, end = self._special.thinking_tags
        if prompt.rfind(begin) > prompt.rfind(end) and any(end not in answer.assistant_text for answer in answers):
            yield warnings.UNCLOSED_THINKING
        for turns, answer in zip(chat.answers, answers, strict=True):
            yield from self._thinking_kinds(chat, turns, answer)
        for field in self._ignored_fields(chat):
            yield warnings.IGNORED_FIELDS[field]

    def _thinking_kinds(
        self, chat: ChatExample, turns: Sequence[Message], answer: AlignedAnswer
    ) -> Iterator[warnings.WarningKind]:
        *earlier, last = turns
        thinking = self._thinking(last)
        if thinking and thinking not in answer.assistant_text:
            yield warnings.THINKING_LOST
        if thinking and False in (chat.options.get("enable_thinking"), chat.options.get("thinking")):
            yield warnings.THINKING_CONTRADICTION
        if any(text not in answer.rendered for turn in (*chat.prompt, *earlier) if (text := self._thinking(turn))):
            yield warnings.EARLIER_THINKING_LOST
        _, end = self._special.thinking_tags
        has_block = end in answer.assistant_text and self._empty_thinking.search(answer.assistant_text)
        if has_block and not any(end in turn["content"] for turn in turns):
            yield warnings.EMPTY_THINKING

    def _thinking(self, turn: Message) -> str:
        """An assistant turn's thinking, without blanks around it."""
        if turn["role"] != "assistant":
            return ""
        texts = [text for key in _REASONING_KEYS if isinstance(text := turn.get(key), str)]
        begin, end = self._special.thinking_tags
        if end in turn["content"]:
            texts.append(turn["content"].split(end)[0].split(begin)[-1])
        return next((text.strip() for text in texts if text.strip()), "")

    def _check_rendered(self, chat: ChatExample, turns: Sequence[Message], answer: AlignedAnswer) -> None:
        """Raise `RowError` if the template renders nothing of an answer."""
        text = self._empty_thinking.sub("", self._special.strip_from(answer.assistant_text))
        if text.strip():
            if turns[-1]["content"].strip() or chat.continues_turn:
                return
            without = [*chat.prompt, *turns[:-1], {"role": "assistant", "content": ""}]
            if self._render(chat, without) != answer.rendered:
                return
        fields = ", ".join(f"`{key}`" for key in turns[-1] if key != "role" and turns[-1][key])
        message = f"the model's chat template renders nothing of an answer, which has {fields}"
        hint = "Use a template that renders it, or leave the row out with --bad-rows skip."
        raise RowError(message, kind="nothing rendered", hint=hint)

    def _ignored_fields(self, chat: ChatExample) -> Iterator[str]:
        """The fields of an example that the template ignores, as far as the first rows with these fields show."""
        present = tuple(_present_fields(chat))
        for field in present:
            samples, ignored = self._ignored.get((present, field), (0, True))
            if ignored and samples < _SAMPLES:
                ignored = self._is_ignored(chat, field)
                self._ignored[present, field] = samples + 1, ignored
            if ignored:
                yield field

    def _is_ignored(self, chat: ChatExample, field: str) -> bool:
        turns = next((turns for turns in chat.answers if _has_field(turns, field)), chat.answers[0])
        messages, options = [*chat.prompt, *turns], chat.options
        if field == "tools":
            options = {key: value for key, value in options.items() if key != "tools"}
            changed = messages
        elif field == "system":
            changed = [turn for turn in messages if turn["role"] not in SYSTEM_ROLES]
        else:
            keys = _REASONING_KEYS if field == "reasoning_content" else (field,)
            changed = [{key: value for key, value in turn.items() if key not in keys} for turn in messages]
        rendered = self._render(chat, messages)
        return rendered is not None and rendered == self._render(chat._replace(options=options), changed)

    def _render(self, chat: ChatExample, messages: list[Message]) -> str | None:
        with suppress(RowError):
            return self._renderer.text(self._renderer.render(chat, messages))
        return None


def _present_fields(chat: ChatExample) -> Iterator[str]:
    if "tools" in chat.options:
        yield "tools"
    if any(_has_field([*chat.prompt, *turns], "tool_calls") for turns in chat.answers):
        yield "tool_calls"
    if any(_has_field(turns[-1:], "reasoning_content") for turns in chat.answers):
        yield "reasoning_content"
    if chat.prompt[0]["role"] in SYSTEM_ROLES:
        yield "system"


def _has_field(turns: Sequence[Message], field: str) -> bool:
    keys = _REASONING_KEYS if field == "reasoning_content" else (field,)
    return any(turn.get(key) for turn in turns for key in keys)
