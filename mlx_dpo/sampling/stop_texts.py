"""The text of sampled tokens, and the texts that end it, wherever they lie across the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXTRA_TOKENS = 8  # decoded before a stop text, since the first one may be a part of a character


def text_after(tokenizer: Any, token: int, token_ids: Sequence[int]) -> str:
    """The text of tokens that follow another one.

    SentencePiece drops the space of a word that begins a text; so the token before is decoded with them.

    Args:
        tokenizer: mlx-lm's wrapper or a tokenizer of transformers.
        token: the one before, such as the last of the prompt.
        token_ids: the tokens.
    """
    before, whole = tokenizer.decode([token]), tokenizer.decode([token, *token_ids])
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(list(token_ids)))  # the token before is a part of a character


class StopTexts:
    """Looks for the stop texts at the end of what is sampled.

    Args:
        tokenizer: mlx-lm's wrapper or a tokenizer of transformers.
        stop: the texts.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        # a token is at least a byte of the text
        self._window = max((len(text.encode()) for text in self.stop), default=0) + EXTRA_TOKENS

    def occur_in(self, last_prompt_token: int, token_ids: Sequence[int]) -> bool:
        """Whether a stop text has just been completed.

        Args:
            last_prompt_token: the token before the completion.
            token_ids: of the completion so far; it had no stop text before its last token.
        """
        if not self.stop:
            return False
        start = max(0, len(token_ids) - self._window)
        text = text_after(self.tokenizer, token_ids[start - 1] if start else last_prompt_token, token_ids[start:])
        return any(stop in text for stop in self.stop)

    def cut(self, text: str) -> str:
        """The text before the first stop text; all of it if there is none."""
        starts = [start for stop in self.stop if (start := text.find(stop)) >= 0]
        return text[: min(starts, default=len(text))]
