"""Examples rendered by a model's chat template: the one place where a prompt becomes token ids.

Training, evaluation, sampling and scoring all take a prompt's ids from `ChatRenderer.prompt_ids`, so that a policy is
trained after the ids that it will generate from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from mlx_dpo.data.conversations import TextOrMessages, as_messages
from mlx_dpo.data.encoded_example import TokenIds
from mlx_dpo.data.messages import Message, format_hh_dialogue
from mlx_dpo.data.special_tokens import SpecialTokens
from mlx_dpo.data.template_errors import template_error
from mlx_dpo.data.template_kwargs import check_template_kwargs
from mlx_dpo.errors import RowError
from mlx_dpo.utils.time_limit import TimeLimitExceeded, time_limit

RENDER_SECONDS = 5.0  # a row takes about a millisecond; a template with an endless loop would never end

# What a template makes of messages: text, or token ids if the tokenizer's ids are not those of the text.
Rendering = str | TokenIds


class PromptSource(Protocol):
    """What a prompt is rendered from: an `Example`, or a `Prompt` without completions."""

    @property
    def prompt(self) -> TextOrMessages:
        """Text, or a conversation."""

    @property
    def completions(self) -> tuple[TextOrMessages, ...]:
        """Answers to the prompt, in the order of a row; none for a prompt alone."""

    @property
    def tools(self) -> list[Any] | None:
        """JSON schemas of the tools that the template lists."""

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Variables for the chat template."""

    @property
    def is_hh_dialogue(self) -> bool:
        """Whether the text is a dialogue of "Human:" and "Assistant:" turns."""


class ChatExample(NamedTuple):
    """An example as messages.

    Attributes:
        prompt: the conversation that is answered.
        answers: the turns of each completion.
        options: what the template is given beside messages.
        num_shared_turns: how many turns all answers begin with; they are context.
    """

    prompt: list[Message]
    answers: list[list[Message]]
    options: dict[str, Any]
    num_shared_turns: int = 0

    @property
    def continues_turn(self) -> bool:
        """Whether the answers continue an assistant turn that the prompt ends with."""
        last = self.prompt[-1]
        return last["role"] == "assistant" and not last.get("tool_calls")


class ChatRenderer:
    """Renders examples under a tokenizer: mlx-lm's wrapper or one of transformers.

    Args:
        tokenizer: the tokenizer, with or without a chat template.
        raw: take texts as they are, though there is a chat template.
        template_kwargs: variables for the chat template; those of an example take precedence.

    Raises:
        UserError: `template_kwargs` sets what the renderer sets itself.
    """

    def __init__(
        self, tokenizer: Any, *, raw: bool = False, template_kwargs: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        check_template_kwargs(template_kwargs, "chat_template_kwargs")
        self.tokenizer, self.raw, self.template_kwargs = tokenizer, raw, dict(template_kwargs)
        templates = getattr(tokenizer, "has_chat_template", None)  # mlx-lm's wrapper has this attribute
        self.has_chat_template = bool(getattr(tokenizer, "chat_template", None) if templates is None else templates)
        # the wrapper sets this itself, and a renderer of its own would not know it
        self._options = {"return_dict": False} if templates is None else {}
        self.special_tokens = SpecialTokens(tokenizer)
        # transformers warns once of long texts; here their lengths are looked after
        warned: dict[str, bool] = getattr(tokenizer, "deprecation_warnings", {})
        warned["sequence-length-is-longer-than-the-specified-maximum"] = True
        self._renders_text: bool | None = None  # known from the first row

    def prompt_ids(self, source: PromptSource) -> TokenIds:
        """The token ids of a prompt as a completion is generated from them, without a length limit; at least one.

        Raises:
            RowError: the template refuses it, or it has no tokens.
        """
        chat = self.as_chat(source)
        if chat is None:
            return self.or_start_token(self.tokenize_text(plain_texts(source)[0]))
        return self.or_start_token(self.token_ids(self.render_prompt(chat)))

    def as_chat(self, source: PromptSource) -> ChatExample | None:
        """The example as messages for the chat template, or None where it is taken as plain text. Raises `RowError`."""
        prompt: Any = source.prompt
        if (isinstance(prompt, str) or source.is_hh_dialogue) and (self.raw or not self.has_chat_template):
            return None
        if self.raw:
            hint = "Leave out --raw, or give prompt and answers as texts."
            raise RowError("--raw takes texts, and this row is made of messages", kind="raw", hint=hint)
        if not self.has_chat_template:
            hint = "Use an instruct model, or rows of plain texts."
            raise RowError("messages need a chat template, and this tokenizer has none", kind="no template", hint=hint)
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        options = {**self.template_kwargs, **source.template_kwargs, **self._options}
        if source.tools:
            options["tools"] = source.tools
        return _with_shared_turns(ChatExample(prompt, [as_messages(answer) for answer in source.completions], options))

    def render_prompt(self, chat: ChatExample) -> Rendering:
        """The prompt as an answer to it is generated. Raises `RowError`."""
        how = {"continue_final_message": True} if chat.continues_turn else {"add_generation_prompt": True}
        return self.render(chat, chat.prompt, **how)

    def render(self, chat: ChatExample, messages: Sequence[Message], **how: bool) -> Rendering:
        """What the template makes of messages with an example's options.

        Args:
            chat: gives the options.
            messages: the messages.
            how: `add_generation_prompt` or `continue_final_message`.

        Raises:
            RowError: the template refuses them.
            UserError: the template has a syntax error.
        """
        try:
            return self._apply_template(list(messages), {**chat.options, **how})
        except TimeLimitExceeded:
            message = f"the model's chat template has not finished this row after {RENDER_SECONDS:.0f} seconds"
            raise RowError(message, kind="template time", hint="Its loop may not end on such a row.") from None
        except Exception as error:  # a template is a program of the model's: it may fail in any way
            raise template_error(error, messages, lambda other: self._accepts(chat, other, how)) from None

    def _accepts(self, chat: ChatExample, messages: list[Message], how: Mapping[str, bool]) -> bool:
        with suppress(Exception):
            self._apply_template(messages, {**chat.options, **how})
            return True
        return False

    def _apply_template(self, messages: list[Message], options: dict[str, Any]) -> Rendering:
        if self._renders_text is not False:
            with time_limit(RENDER_SECONDS):
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
            if self._renders_text is None:
                ids = self.tokenizer.apply_chat_template(messages, tokenize=True, **options)
                self._renders_text = isinstance(text, str) and list(ids) == self._encode(text)
            if self._renders_text:
                return str(text)
        ids = self.tokenizer.apply_chat_template(messages, tokenize=True, **options)
        return tuple(int(i) for i in ids)

    def token_ids(self, rendering: Rendering) -> TokenIds:
        """The token ids of a rendering, as the tokenizer gives them."""
        return tuple(self._encode(rendering)) if isinstance(rendering, str) else rendering

    def continuation_ids(self, rendering: Rendering) -> TokenIds:
        """The token ids of a piece of a rendering that follows other text: nothing is put in front of it."""
        if not isinstance(rendering, str):
            return rendering
        anchor = self._encode(self.special_tokens.anchor)
        ids = self._encode(self.special_tokens.anchor + rendering)
        return tuple(ids[len(anchor) :] if anchor and ids[: len(anchor)] == anchor else self._encode(rendering))

    def split_ids(self, rendering: Rendering, cuts: Sequence[int]) -> list[TokenIds]:
        """The token ids of a rendering in pieces.

        Args:
            rendering: text or ids.
            cuts: where to cut it, ascending.

        Returns:
            One piece more than there are cuts. Together they are the ids of the whole, unless a token spans a cut:
            then each piece is tokenized by itself.
        """
        whole = self.token_ids(rendering)
        starts = [self.token_ids(rendering[:cut]) for cut in cuts]
        if all(whole[: len(start)] == start for start in starts):
            bounds = [0, *map(len, starts), len(whole)]
            return [whole[a:b] for a, b in pairwise(bounds)]
        bounds = [*cuts, len(rendering)]
        pieces = [rendering[a:b] for a, b in pairwise(bounds)]
        return [starts[0], *map(self.continuation_ids, pieces)]

    def text(self, rendering: Rendering) -> str:
        """A rendering as text."""
        return rendering if isinstance(rendering, str) else self.tokenizer.decode(list(rendering))

    def tokenize_text(self, text: str) -> TokenIds:
        """The token ids of a plain text, with BOS once if the tokenizer begins texts with it. Raises `RowError`."""
        try:
            ids = list(self.tokenizer.encode(text))
        except Exception as error:
            raise RowError(f"the tokenizer fails on this text: {error}", kind="tokenizer") from None
        # some tokenizers end every text with EOS, which would stand between prompt and answer
        special = self.special_tokens
        if ids and ids[-1] == special.eos and not text.endswith(str(getattr(self.tokenizer, "eos_token", None))):
            ids.pop()
        if special.bos is not None and ids[:2] == [special.bos] * 2 and self._encode(text)[:2] != ids[:2]:
            del ids[0]  # the text begins with BOS, and the tokenizer has put one before it
        return tuple(ids)

    def or_start_token(self, prompt: TokenIds) -> TokenIds:
        """The prompt, or if it has no tokens one to predict the first token from. Raises `RowError`."""
        start = self.special_tokens.start
        if not prompt and start is None:
            raise RowError("the prompt has no tokens", kind="empty", field="prompt")
        return prompt or (int(start or 0),)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def plain_texts(source: PromptSource) -> tuple[str, ...]:
    """The prompt and the completions of an example that is taken as plain text."""
    if source.is_hh_dialogue:
        opening = "\n\nAssistant:"
        prompt = format_hh_dialogue([*as_messages(source.prompt), {"role": "assistant", "content": ""}]).rstrip()
        return prompt, *(format_hh_dialogue(as_messages(answer)).removeprefix(opening) for answer in source.completions)
    return str(source.prompt), *map(str, source.completions)


def _with_shared_turns(chat: ChatExample) -> ChatExample:
    """The example with the turns that all its answers begin with counted as context, and in the prompt if possible."""
    if len(chat.answers) < 2:
        return chat
    most = min(map(len, chat.answers)) - 1
    first, *others = chat.answers
    shared = next((i for i in range(most) if any(answer[i] != first[i] for answer in others)), most)
    if not shared:
        return chat
    if chat.continues_turn or any(answer[shared]["role"] != "assistant" for answer in chat.answers):
        return chat._replace(num_shared_turns=shared)
    prompt = [*chat.prompt, *first[:shared]]
    return chat._replace(prompt=prompt, answers=[answer[shared:] for answer in chat.answers])
