"""Examples to token ids under a model's chat template, and where exactly the prompt ends.

The ids are what the template makes of prompt and answer together; the prompt is the part of them that the model is
given when it is asked to answer. Everything behind it is trained, the end-of-turn token included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from mlx_dpo.data.conversations import as_messages
from mlx_dpo.data.examples import Example
from mlx_dpo.data.messages import Message, format_hh_dialogue
from mlx_dpo.errors import RowError, Where

Overlong = Literal["truncate", "drop", "error"]
TokenIds = tuple[int, ...]
_SYSTEM = ("system", "developer")
_MAX_TOKENS_AFTER_END = 3  # tokens a template may put behind the end of a turn, like ChatML's line break


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids.

    Attributes:
        prompt: what the answers are given; at least one token.
        completions: the trained tokens of each answer, up to and including the end of the turn; of a pair the chosen
            one's, then the rejected one's.
        example: what it was made of.
        cut: tokens were lost to the length limit.
        prefix_held: the prompt as rendered for generation is how prompt and answer together begin, for every answer.
    """

    prompt: TokenIds
    completions: tuple[TokenIds, ...]
    example: Example = field(compare=False)
    truncated: bool = False
    prompt_is_prefix: bool = True

    @property
    def chosen(self) -> TokenIds:
        """The first completion."""
        return self.completions[0]

    @property
    def rejected(self) -> TokenIds:
        """The second one, of a pair."""
        return self.completions[1]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt) + max(map(len, self.completions))


class _ChatExample(NamedTuple):
    """An example as messages, with what the template is given beside them."""

    example: Example
    prompt: list[Message]
    answers: list[list[Message]]
    options: dict[str, Any]


class ExampleEncoder:
    """Encodes examples under a tokenizer: mlx-lm's wrapper or one of transformers.

    Args:
        max_length: the most tokens of prompt and longer answer together; at least 2.
        overlong: what becomes of a longer one. "truncate": its prompt loses its oldest turns, then its first tokens;
            an answer that is too long by itself loses its end. "drop": it becomes None. "error": a `RowError`.
        raw: take texts as they are, though there is a chat template.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, overlong: Overlong, raw: bool) -> None:
        self.tokenizer, self.max_length, self.overlong, self.raw = tokenizer, max_length, overlong, raw
        templates = getattr(tokenizer, "has_chat_template", None)  # mlx-lm's wrapper says so
        self.has_chat_template = bool(getattr(tokenizer, "chat_template", None) if templates is None else templates)
        # the wrapper sets this itself, and a renderer of its own would not know it
        self._options = {"return_dict": False} if templates is None else {}
        self._end_token_ids = end_token_ids(tokenizer)
        # transformers warns once of long texts; here their lengths are looked after
        warned: dict[str, bool] = getattr(tokenizer, "deprecation_warnings", {})
        warned["sequence-length-is-longer-than-the-specified-maximum"] = True
        self._start_token = next((t for t in map(self._special_token_id, ("bos", "eos", "pad")) if t is not None), None)

    def __call__(self, example: Example, where: Where | None = None) -> EncodedExample | None:
        """The example's ids, or None where it is dropped for its length. Raises `RowError`."""
        try:
            return self._encode_within_limit(example)
        except RowError as error:
            error.where = where
            raise

    def _encode_within_limit(self, example: Example) -> EncodedExample | None:
        chat = self._as_chat(example)
        encoded = self._encode_texts(example) if chat is None else self._encode_chat(chat)
        if encoded.num_tokens <= self.max_length:
            return encoded
        if self.overlong == "drop":
            return None
        if self.overlong == "error":
            longest = max(map(len, encoded.completions))
            raise RowError(
                f"too long: {len(encoded.prompt)} tokens of prompt and {longest} of answer, "
                f"over the {self.max_length} of --max-length",
                kind="too long",
                hint="Raise --max-length, or use --overlong truncate or drop.",
            )
        return self._truncate(encoded if chat is None else self._drop_oldest_turns(chat, encoded))

    def _as_chat(self, example: Example) -> _ChatExample | None:
        """The example as messages for the chat template, or None where it is taken as plain text."""
        if (isinstance(example.prompt, str) or example.is_hh_dialogue) and (self.raw or not self.has_chat_template):
            return None
        if self.raw:
            hint = "Leave out --raw, or give prompt and answers as texts."
            raise RowError("--raw takes texts, and this row is made of messages", kind="raw", hint=hint)
        if not self.has_chat_template:
            hint = "Use an instruct model, or rows of plain texts."
            raise RowError("messages need a chat template, and this tokenizer has none", kind="no template", hint=hint)
        prompt: Any = example.prompt
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        tools = {"tools": example.tools} if example.tools else {}
        options = {**example.template_kwargs, **self._options, **tools}
        return _ChatExample(example, prompt, [as_messages(answer) for answer in example.completions], options)

    def _encode_chat(self, chat: _ChatExample) -> EncodedExample:
        last = chat.prompt[-1]
        if last["role"] == "assistant" and not last.get("tool_calls"):  # completions continue it
            prompt = self._render(chat, chat.prompt, continue_final_message=True)
            wholes = [
                self._render(chat, [*chat.prompt[:-1], *_continue_turn(last, completion)])
                for completion in chat.answers
            ]
        else:
            prompt = self._render(chat, chat.prompt, add_generation_prompt=True)
            wholes = [self._render(chat, [*chat.prompt, *completion]) for completion in chat.answers]
        return self._split_prompt(chat.example, prompt, *wholes)

    def _render(self, chat: _ChatExample, messages: list[Message], **how: bool) -> list[int]:
        try:
            ids = self.tokenizer.apply_chat_template(messages, tokenize=True, **chat.options, **how)
            return [int(i) for i in ids]
        except Exception as error:  # a template is a program of the model's: it may fail in any way
            lines = str(error).strip().splitlines()
            reason = lines[0][:300] if lines else type(error).__name__
            message = f"the model's chat template refuses this row: {reason}"
            raise RowError(message, kind="template", hint="Its roles in order: " + _roles(messages)) from None

    def _encode_texts(self, example: Example) -> EncodedExample:
        """Plain texts: each answer tokenized together with the prompt, as it would be read, and ended by EOS."""
        prompt, *answers = _plain_texts(example)
        wholes = [self._tokenize(prompt + answer) for answer in answers]
        return self._split_prompt(example, self._tokenize(prompt), *wholes)

    def _tokenize(self, text: str) -> list[int]:
        try:
            ids = list(self.tokenizer.encode(text))
        except Exception as error:
            raise RowError(f"the tokenizer fails on this text: {error}", kind="tokenizer") from None
        # some tokenizers end every text with EOS, which would stand between prompt and answer
        eos = self._special_token_id("eos")
        if ids and ids[-1] == eos and not text.endswith(str(getattr(self.tokenizer, "eos_token", None))):
            ids.pop()
        return ids

    def _split_prompt(self, example: Example, prompt: list[int], *wholes: list[int]) -> EncodedExample:
        held = bool(prompt) and all(whole[: len(prompt)] == prompt for whole in wholes)
        start = len(prompt) if held else _common_prefix_length(prompt, *wholes)
        answers = tuple(self._with_end_token(whole[start:]) for whole in wholes)
        if not start:  # nothing to predict the first token from
            if self._start_token is None:
                raise RowError("the prompt has no tokens", kind="empty", field="prompt")
            return EncodedExample((self._start_token,), answers, example, prompt_is_prefix=not prompt)
        return EncodedExample(tuple(wholes[0][:start]), answers, example, prompt_is_prefix=held)

    def _with_end_token(self, answer: list[int]) -> TokenIds:
        """An answer with EOS behind it, unless it ends its turn already."""
        eos = self._special_token_id("eos")
        if eos is not None and self._end_token_ids.isdisjoint(answer[-1 - _MAX_TOKENS_AFTER_END :]):
            answer = [*answer, eos]
        if not answer:
            raise RowError("an answer has no tokens", kind="empty")
        return tuple(answer)

    def _special_token_id(self, name: str) -> int | None:
        return getattr(self.tokenizer, f"{name}_token_id", None)

    def _drop_oldest_turns(self, chat: _ChatExample, whole: EncodedExample) -> EncodedExample:
        """The example without as many of the prompt's oldest turns as it takes, down to the last turn of the user.

        The system message stays, and what is left begins with a turn of the user, as templates want it.
        """
        system = list(takewhile(lambda message: message["role"] in _SYSTEM, chat.prompt))
        starts = [i for i, m in enumerate(chat.prompt) if i > len(system) and m["role"] == "user"]
        if not starts:
            return whole

        def from_turn(start: int) -> EncodedExample:
            return self._encode_chat(chat._replace(prompt=[*system, *chat.prompt[start:]]))

        try:
            fits = bisect_left(starts, True, key=lambda start: from_turn(start).num_tokens <= self.max_length)
            return from_turn(starts[min(fits, len(starts) - 1)])
        except RowError:  # the template wants the turns it would lose
            return whole

    def _truncate(self, whole: EncodedExample) -> EncodedExample:
        room = max(1, self.max_length - max(map(len, whole.completions)))
        prompt = whole.prompt[-room:]
        if room < len(whole.prompt) and room > 1 and whole.prompt[0] == self._special_token_id("bos"):
            prompt = (whole.prompt[0], *prompt[1:])
        left = self.max_length - len(prompt)
        return replace(whole, prompt=prompt, completions=tuple(ids[:left] for ids in whole.completions), truncated=True)


def end_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that end a turn or a text: EOS, and the special tokens, one of which the template ends a turn with."""
    eos = getattr(tokenizer, "eos_token_ids", None)  # several in mlx-lm's wrapper, one in transformers
    if not isinstance(eos, (set, list, tuple)):
        eos = [getattr(tokenizer, "eos_token_id", None)]
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return frozenset([*(i for i in eos if i is not None), *(i for i, token in added.items() if token.special)])


def _plain_texts(example: Example) -> tuple[str, ...]:
    """The prompt and the answers of plain texts."""
    if example.is_hh_dialogue:
        opening = "\n\nAssistant:"
        prompt = format_hh_dialogue([*as_messages(example.prompt), {"role": "assistant", "content": ""}]).rstrip()
        return prompt, *(
            format_hh_dialogue(as_messages(answer)).removeprefix(opening) for answer in example.completions
        )
    return str(example.prompt), *map(str, example.completions)


def _continue_turn(start: Message, completion: Sequence[Message]) -> list[Message]:
    """Merge a completion into the assistant turn that the prompt ends with."""
    first = completion[0]
    return [{**start, **first, "content": start["content"] + first["content"]}, *completion[1:]]


def _common_prefix_length(*sequences: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False)))


def _roles(messages: list[Message]) -> str:
    roles = [message["role"] for message in messages]
    return ", ".join(roles if len(roles) <= 8 else [*roles[:3], "...", *roles[-4:]])
