"""Which tokens of a rendered conversation are the assistant's: those that are trained and scored.

A template renders prompt and answer together. Where that begins with the prompt as it is rendered for generation, the
rest is the answer. Some templates render the two differently: a generation prompt may open a block of thinking that a
finished answer does not have, or earlier turns may change once they are answered. The prompt then stays as it is
generated from, and the answer is what the template renders after the assistant's header. The header is found by
rendering the conversation again with other text in the answer's place: what both have in common is not the answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlx_dpo.data.chat_rendering import ChatExample, ChatRenderer, Rendering
from mlx_dpo.data.encoded_example import TokenIds, TokenMask
from mlx_dpo.data.messages import Message
from mlx_dpo.errors import RowError
from mlx_dpo.settings.data_settings import TrainOn
from mlx_dpo.utils.common_prefix import common_prefix_length

Span = tuple[int, int]  # start and end in a rendering


@dataclass(frozen=True, slots=True)
class AlignedAnswer:
    """An answer as token ids after its prompt.

    Attributes:
        ids: all tokens after the prompt.
        mask: which of them are the assistant's; None where all are.
        prompt_is_prefix: prompt and answer rendered together begin with the prompt's ids.
        rendered: prompt and answer rendered together, as text.
        assistant_text: the assistant's part of it.
    """

    ids: TokenIds
    mask: TokenMask | None
    prompt_is_prefix: bool
    rendered: str
    assistant_text: str


class AnswerAligner:
    """Finds the assistant's tokens in the answers to a prompt.

    Args:
        renderer: renders the messages.
        chat: the prompt and its answers.
        train_on: "all": every assistant turn of an answer. "last": only the last one.

    Attributes:
        prompt, prompt_ids: the prompt rendered for generation.

    Raises:
        RowError: the template refuses the prompt.
    """

    def __init__(self, renderer: ChatRenderer, chat: ChatExample, train_on: TrainOn) -> None:
        self._renderer, self._chat, self._train_on = renderer, chat, train_on
        self._special = renderer.special_tokens
        self.prompt = renderer.render_prompt(chat)
        self.prompt_ids = renderer.token_ids(self.prompt)

    def align(self, answer: list[Message]) -> AlignedAnswer:
        """The tokens of an answer. Raises `RowError` if the template hides which are the assistant's."""
        chat, renderer = self._chat, self._renderer
        if chat.continues_turn:
            turns, first = [*chat.prompt[:-1], *_continue_turn(chat.prompt[-1], answer)], len(chat.prompt) - 1
        else:
            turns, first = [*chat.prompt, *answer], len(chat.prompt)
        whole = renderer.render(chat, turns)
        whole_ids = renderer.token_ids(whole)
        is_prefix = whole_ids[: len(self.prompt_ids)] == self.prompt_ids
        start = len(self.prompt) if is_prefix else self._answer_start(whole, turns, first)
        if len(answer) == 1:
            ids = whole_ids[len(self.prompt_ids) :] if is_prefix else renderer.split_ids(whole, [start])[1]
            return AlignedAnswer(ids, None, is_prefix, renderer.text(whole), renderer.text(whole[start:]))
        spans = [self._span(whole, turns, i, start if i == first else None) for i in self._trained_turns(turns, first)]
        return self._masked(whole, start, spans, is_prefix)

    def _answer_start(self, whole: Rendering, turns: Sequence[Message], first: int) -> int:
        if self._chat.continues_turn:
            return self._common_prefix(whole, self.prompt)
        return self._turn_start(whole, turns, first, self.prompt)

    def _trained_turns(self, turns: Sequence[Message], first: int) -> list[int]:
        indices = range(first + self._chat.num_shared_turns, len(turns))
        assistant_turns = [i for i in indices if turns[i]["role"] == "assistant"]
        return assistant_turns[-1:] if self._train_on == "last" else assistant_turns

    def _masked(self, whole: Rendering, start: int, spans: Sequence[Span], is_prefix: bool) -> AlignedAnswer:
        bounds = sorted({start, *(bound for span in spans for bound in span)})
        pieces = self._renderer.split_ids(whole, bounds)[1:]
        starts = {begin for begin, end in spans if end > begin}
        mask = tuple(bound in starts for bound, piece in zip(bounds, pieces, strict=True) for _ in piece)
        ids = tuple(token_id for piece in pieces for token_id in piece)
        text = self._renderer.text
        assistant_text = "".join(text(whole[begin:end]) for begin, end in spans)
        return AlignedAnswer(ids, None if all(mask) else mask, is_prefix, text(whole), assistant_text)

    def _span(self, whole: Rendering, turns: Sequence[Message], i: int, start: int | None) -> Span:
        if start is None:
            generation = self._try_render(turns[:i], add_generation_prompt=True)
            start = self._turn_start(whole, turns, i, generation)
        end = len(whole) if i == len(turns) - 1 else self._turn_end(whole, turns, i, start)
        return start, max(start, end)

    def _turn_start(self, whole: Rendering, turns: Sequence[Message], i: int, generation: Rendering | None) -> int:
        """Where turn `i`, of the assistant, begins after its header.

        Args:
            whole: all turns rendered.
            turns: the turns.
            i: index of the turn.
            generation: the turns before it rendered to generate it.
        """
        if generation is not None and whole[: len(generation)] == generation:
            return len(generation)
        other = self._render_with_placeholder(turns, i)
        same = None if other is None else self._common_prefix(whole, other)
        before = self._try_render(turns[:i])
        if before is None or generation is None or generation[: len(before)] != before:
            if same is None and generation is not None:
                return self._common_prefix(whole, generation)
        elif whole[: len(before)] == before and (common := self._common_prefix(whole, generation)) > len(before):
            start = common if same is None else min(common, same)
            return self._before_thinking(whole, generation, len(before), start)
        elif same is not None:
            header = generation[len(before) :]
            at = _find_last(whole, header, same) if header else None
            return same if at is None else at + len(header)
        if same is None:
            raise _hidden_turns_error()
        return same

    def _before_thinking(self, whole: Rendering, generation: Rendering, header: int, start: int) -> int:
        """A start that leaves an answer its own thinking, if the generation prompt has an empty block of it."""
        if not isinstance(whole, str) or not isinstance(generation, str):
            return start
        begin, end = self._special.thinking_tags
        at = whole.rfind(begin, header, start)
        opened = at >= 0 and end not in whole[at:start]
        return at if opened and end in generation[start:] else start

    def _turn_end(self, whole: Rendering, turns: Sequence[Message], i: int, start: int) -> int:
        """Where turn `i`, of the assistant and not the last one, ends, its end-of-turn token included."""
        until = self._try_render(turns[: i + 1])
        if until is not None and len(until) > start and whole[: len(until)] == until:
            end, closing = len(until), None
        else:
            other = self._render_with_placeholder(turns, i)
            if other is None:
                raise _hidden_turns_error()
            end = max(start, len(whole) - self._common_suffix(whole, other))
            closing = self._closing(turns, i)
            if closing and whole[end : end + len(closing)] == closing:
                return end + len(closing)
        return end + self._end_token_length(whole, turns, i, (start, end), closing)

    def _end_token_length(
        self, whole: Rendering, turns: Sequence[Message], i: int, span: Span, closing: Rendering | None
    ) -> int:
        """The length of the token after a turn if it ends the turn, else 0."""
        start, end = span
        if not isinstance(whole, str):
            ends = self._special.ends
            return int(end < len(whole) and whole[end] in ends and ends.isdisjoint(whole[start:end][-1:]))
        token = self._special.begins(whole[end:])
        if not token or self._special.ends_with(whole[start:end]):
            return 0
        before, generation = self._try_render(turns[:i]), self._try_render(turns[:i], add_generation_prompt=True)
        header = str(generation)[len(before) :] if before is not None else ""
        closes = isinstance(closing, str) and self._special.begins(closing) != "" and token not in header
        return len(token) if token in self._special.eos_texts or closes else 0

    def _closing(self, turns: Sequence[Message], i: int) -> Rendering | None:
        """What the template puts after the text of turn `i` as the last one."""
        placeholder = _placeholder(turns[i])
        rendered = self._try_render([*turns[:i], placeholder])
        at = -1 if not isinstance(rendered, str) else rendered.rfind(placeholder["content"])
        return None if at < 0 or rendered is None else rendered[at + len(placeholder["content"]) :]

    def _render_with_placeholder(self, turns: Sequence[Message], i: int) -> Rendering | None:
        """All turns, with other text in the place of turn `i`; None where that text is not rendered."""
        placeholder = _placeholder(turns[i])
        rendered = self._try_render([*turns[:i], placeholder, *turns[i + 1 :]])
        hidden = isinstance(rendered, str) and placeholder["content"] not in rendered
        return None if hidden else rendered

    def _try_render(self, messages: Sequence[Message], **how: Any) -> Rendering | None:
        with suppress(RowError):
            return self._renderer.render(self._chat, messages, **how) if messages else ""
        return None

    def _common_prefix(self, first: Rendering, second: Rendering) -> int:
        length = common_prefix_length(first, second)
        for rendering in (first, second):
            if isinstance(rendering, str):
                length = self._special.snap(rendering, length)
        return length

    def _common_suffix(self, first: Rendering, second: Rendering) -> int:
        length = common_prefix_length(first[::-1], second[::-1])
        for rendering in (first, second):
            if isinstance(rendering, str):
                length = len(rendering) - self._special.snap(rendering, len(rendering) - length, forward=True)
        return length


def _placeholder(turn: Message) -> Message:
    """An assistant turn whose text begins and ends differently from that of `turn`."""
    content = turn["content"].strip()
    letter = next(letter for letter in "QZX" if letter not in (content[:1], content[-1:]))
    return {"role": "assistant", "content": f"{letter}placeholder{letter}"}


def _find_last(whole: Rendering, part: Rendering, end: int) -> int | None:
    """Where a part last occurs in a rendering before `end`."""
    starts = range(end - len(part), -1, -1)
    return next((at for at in starts if whole[at : at + len(part)] == part), None)


def _continue_turn(start: Message, answer: Sequence[Message]) -> list[Message]:
    """Merge an answer into the assistant turn that the prompt ends with."""
    first = answer[0]
    return [{**start, **first, "content": start["content"] + first["content"]}, *answer[1:]]


def _hidden_turns_error() -> RowError:
    hint = "Give each assistant turn a row of its own, with the turns before it as the prompt."
    message = "the model's chat template renders this row in a way that hides which tokens are the assistant's"
    return RowError(message, kind="template", hint=hint)
