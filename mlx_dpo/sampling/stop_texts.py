"""Texts that end a completion, wherever they lie across its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXTRA_TOKENS = 8  # decoded before a stop text: a first token may lose its space, or be half a character


class StopTexts:
    """Looks for the stop texts at the end of what is sampled.

    Args:
        tokenizer: mlx-lm's wrapper or a tokenizer of transformers.
        stop: the texts.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        # a token is at least a byte of the text, but for special tokens, which are shown as more
        self._window = max((len(text.encode()) for text in self.stop), default=0) + EXTRA_TOKENS

    def occur_in(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop text has just been completed.

        Args:
            token_ids: of the completion so far; it had no stop text before its last token.
        """
        if not self.stop:
            return False
        text = self.tokenizer.decode(list(token_ids[-self._window :]))
        return any(stop in text for stop in self.stop)

    def cut(self, text: str) -> str:
        """The text before the first stop text; all of it if there is none."""
        starts = [start for stop in self.stop if (start := text.find(stop)) >= 0]
        return text[: min(starts, default=len(text))]
