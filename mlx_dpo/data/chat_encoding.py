"""Examples to token ids under a model's chat template, and what is cut if they are too long.

The prompt's ids are those that a completion is generated from (`ChatRenderer`); the completions follow them, the
end-of-turn token included. Everything that is trained is the assistant's (`AnswerAligner`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from mlx_dpo.config import TrainConfig
from mlx_dpo.data.answer_alignment import AnswerAligner
from mlx_dpo.data.chat_rendering import ChatExample, ChatRenderer, PromptSource, plain_texts
from mlx_dpo.data.encoded_example import EncodedExample, TokenIds, TokenMask, cut_completion
from mlx_dpo.data.encoding_findings import FindingsDetector
from mlx_dpo.data.examples import Example
from mlx_dpo.data.messages import Message
from mlx_dpo.data.prompt_truncation import max_prompt_tokens, shorten_prompt
from mlx_dpo.data.special_tokens import end_token_ids
from mlx_dpo.errors import RowError, Where
from mlx_dpo.settings.data_settings import Overlong, TrainOn

__all__ = ["EncodedExample", "ExampleEncoder", "TokenIds", "end_token_ids"]

_MAX_TOKENS_AFTER_END = 3  # tokens a template may put after the end of a turn, like ChatML's line break


class ExampleEncoder:
    """Encodes examples under a tokenizer: mlx-lm's wrapper or one of transformers.

    Args:
        max_length: the most tokens of prompt and longer completion together; at least 2.
        overlong: what becomes of a longer one. "truncate": a prompt keeps what the completions leave room for, and at
            least half of the limit; beyond that it loses its oldest turns, then text (`shorten_prompt`). A completion
            that does not fit after it loses its end. "drop": it becomes None. "error": a `RowError`.
        raw: take texts as they are, though there is a chat template.
        train_on: which assistant turns of a completion are trained, all or the last one.
        template_kwargs: variables for the chat template; those of a row take precedence.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        overlong: Overlong,
        raw: bool,
        train_on: TrainOn = "all",
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.renderer = ChatRenderer(tokenizer, raw=raw, template_kwargs=template_kwargs)
        self.tokenizer, self.max_length, self.overlong, self.train_on = tokenizer, max_length, overlong, train_on
        self._findings = FindingsDetector(self.renderer)

    @classmethod
    def from_config(cls, config: TrainConfig, tokenizer: Any) -> ExampleEncoder:
        """The encoder of a run's settings."""
        return cls(
            tokenizer,
            max_length=config.max_length,
            overlong=config.overlong,
            raw=config.raw,
            train_on=config.train_on,
            template_kwargs=config.chat_template_kwargs or {},
        )

    def __call__(self, example: Example, where: Where | None = None) -> EncodedExample | None:
        """The example's ids, or None where it is dropped for its length. Raises `RowError`."""
        try:
            return self._encode_within_limit(example)
        except RowError as error:
            error.where = where
            raise

    def prompt_ids(self, prompt: PromptSource, limit: int) -> TokenIds:
        """Return the token ids of a prompt alone, which loses its oldest turns, then text, if it is too long.

        Args:
            prompt: the prompt.
            limit: the most tokens that it may have.

        Raises:
            RowError: it can't be rendered.
        """
        ids = self.renderer.prompt_ids(prompt)
        chat = self.renderer.as_chat(prompt) if len(ids) > limit else None
        if chat is not None:
            shorter = shorten_prompt(chat.prompt, limit, partial(self._count_tokens, chat))
            with suppress(RowError):  # the template wants what it lost
                ids = self.renderer.or_start_token(self._prompt_tokens(chat, shorter))
        return self._cut_prompt(ids, limit)

    def _prompt_tokens(self, chat: ChatExample, messages: list[Message]) -> TokenIds:
        return self.renderer.token_ids(self.renderer.render_prompt(chat._replace(prompt=messages)))

    def _count_tokens(self, chat: ChatExample, messages: list[Message]) -> int:
        return len(self._prompt_tokens(chat, messages))

    def _encode_within_limit(self, example: Example) -> EncodedExample | None:
        chat = self.renderer.as_chat(example)
        encoded = self._encode_texts(example) if chat is None else self._encode_chat(example, chat)
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
        return self._truncate(example, chat, encoded)

    def _encode_chat(self, example: Example, chat: ChatExample) -> EncodedExample:
        aligner = AnswerAligner(self.renderer, chat, self.train_on)
        answers = [aligner.align(answer) for answer in chat.answers]
        findings = self._findings.of_chat(chat, self.renderer.text(aligner.prompt), answers)
        completions = [self._with_end_token(answer.ids, answer.mask) for answer in answers]
        prompt_is_prefix = all(answer.prompt_is_prefix for answer in answers)
        return self._make_example(example, aligner.prompt_ids, completions, prompt_is_prefix, findings)

    def _encode_texts(self, example: Example) -> EncodedExample:
        """Plain texts: each answer tokenized together with the prompt, as it would be read, and ended by EOS."""
        renderer, (prompt_text, *answers) = self.renderer, plain_texts(example)
        prompt, prompt_is_prefix, completions = renderer.tokenize_text(prompt_text), True, []
        for answer in answers:
            whole = renderer.tokenize_text(prompt_text + answer)
            is_prefix = whole[: len(prompt)] == prompt
            ids = whole[len(prompt) :] if is_prefix else renderer.continuation_ids(answer)
            completions.append(self._with_end_token(ids, None))
            prompt_is_prefix = prompt_is_prefix and is_prefix
        findings = self._findings.of_texts(prompt_is_prefix)
        return self._make_example(example, prompt, completions, prompt_is_prefix, findings)

    def _make_example(
        self,
        example: Example,
        prompt: TokenIds,
        completions: Sequence[tuple[TokenIds, TokenMask | None]],
        prompt_is_prefix: bool,
        findings: frozenset[str],
    ) -> EncodedExample:
        ids = tuple(ids for ids, _ in completions)
        masks = None
        if any(mask is not None for _, mask in completions):
            masks = tuple(mask or (True,) * len(ids) for ids, mask in completions)
        return EncodedExample(
            self.renderer.or_start_token(prompt), ids, example, prompt_is_prefix, masks, findings=findings
        )

    def _with_end_token(self, answer: TokenIds, mask: TokenMask | None) -> tuple[TokenIds, TokenMask | None]:
        """An answer with EOS after it, unless it already ends its turn."""
        special = self.renderer.special_tokens
        if special.eos is not None and special.ends.isdisjoint(answer[-1 - _MAX_TOKENS_AFTER_END :]):
            answer, mask = (*answer, special.eos), None if mask is None else (*mask, True)
        if not answer:
            raise RowError("an answer has no tokens", kind="empty")
        return answer, mask

    def _truncate(self, example: Example, chat: ChatExample | None, whole: EncodedExample) -> EncodedExample:
        room = max_prompt_tokens(self.max_length, max(map(len, whole.completions)))
        encoded = whole
        if chat is not None and len(whole.prompt) > room:
            encoded = self._with_shorter_prompt(example, chat, whole, room)
        prompt = self._cut_prompt(encoded.prompt, room)
        limit = self.max_length - len(prompt)
        masks = encoded.completion_masks or (None,) * len(encoded.completions)
        cut = [cut_completion(ids, mask, limit) for ids, mask in zip(encoded.completions, masks, strict=True)]
        lost = (len(before) - len(ids) for before, (ids, _) in zip(whole.completions, cut, strict=True))
        return replace(
            encoded,
            prompt=prompt,
            completions=tuple(ids for ids, _ in cut),
            completion_masks=encoded.completion_masks and tuple(mask or () for _, mask in cut),
            prompt_tokens_cut=len(whole.prompt) - len(prompt),
            completion_tokens_cut=tuple(max(0, n) for n in lost),
        )

    def _with_shorter_prompt(
        self, example: Example, chat: ChatExample, whole: EncodedExample, room: int
    ) -> EncodedExample:
        shorter = shorten_prompt(chat.prompt, room, partial(self._count_tokens, chat))
        try:
            encoded = self._encode_chat(example, chat._replace(prompt=shorter))
        except RowError:  # the template wants what it lost
            return whole
        return replace(encoded, findings=whole.findings)

    def _cut_prompt(self, prompt: TokenIds, room: int) -> TokenIds:
        """The last tokens of a prompt, after its BOS."""
        if len(prompt) <= room:
            return prompt
        if room > 1 and prompt[0] == self.renderer.special_tokens.bos:
            return (prompt[0], *prompt[1 - room :])
        return prompt[-room:]
