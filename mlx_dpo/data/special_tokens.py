"""The special tokens of a tokenizer, and what they are needed for here."""

from __future__ import annotations

import re
from typing import Any


class SpecialTokens:
    """Special tokens of mlx-lm's wrapper or a tokenizer of transformers.

    Attributes:
        bos, eos: ids; None where there is none.
        start: the id used as the prompt if the prompt has no tokens.
        ends: ids that end a turn or a text: EOS, and the special tokens, one of which the template ends a turn with.
        eos_texts: the texts of the tokens that end generation.
        anchor: a text that does not merge with the tokens of the text after it.
        thinking_tags: texts that begin and end the model's thinking.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        self.bos, self.eos = ids["bos"], ids["eos"]
        self.start = next((i for i in ids.values() if i is not None), None)
        self.ends = end_token_ids(tokenizer)
        self._added = dict(getattr(tokenizer, "added_tokens_decoder", None) or {})
        eos_ids = _eos_ids(tokenizer)
        self.eos_texts = {str(token.content) for i, token in self._added.items() if i in eos_ids}
        self._any = _pattern(str(token.content) for token in self._added.values())
        self._special = _pattern(str(token.content) for token in self._added.values() if token.special)
        self.anchor = self._find_anchor()
        begin, end = (getattr(tokenizer, name, None) for name in ("think_start", "think_end"))
        self.thinking_tags = (
            (begin, end) if isinstance(begin, str) and isinstance(end, str) else ("<think>", "</think>")
        )

    def find_in(self, text: str) -> str | None:
        """The first special token that a text contains, or None."""
        match = self._special.search(text) if self._special else None
        return match[0] if match else None

    def strip_from(self, text: str) -> str:
        """A text without its special tokens."""
        return self._special.sub("", text) if self._special else text

    def begins(self, text: str) -> str:
        """The special token that a text begins with, or an empty text."""
        match = self._special.match(text) if self._special else None
        return match[0] if match else ""

    def ends_with(self, text: str) -> bool:
        """Whether the last thing in a text, beside blanks, is a special token."""
        stripped = text.rstrip()
        ends = [match.end() for match in self._special.finditer(stripped)] if self._special else []
        return bool(ends) and ends[-1] == len(stripped)

    def snap(self, text: str, position: int, *, forward: bool = False) -> int:
        """Move a position out of an added token that it would split.

        Args:
            text: the text.
            position: in characters.
            forward: move to the end of the token instead of its start.
        """
        for match in self._any.finditer(text) if self._any else ():
            if match.start() >= position:
                break
            if position < match.end():
                return match.end() if forward else match.start()
        return position

    def _find_anchor(self) -> str:
        """A special token that strips nothing after it; a line break if a blank would be put after it."""
        for name in ("eos", "bos", "pad"):
            text, token_id = (getattr(self._tokenizer, f"{name}_token{suffix}", None) for suffix in ("", "_id"))
            added = self._added.get(token_id)
            if isinstance(text, str) and added is not None and not added.rstrip:
                ids = list(self._tokenizer.encode(text + "A", add_special_tokens=False))
                tokens = self._tokenizer.convert_ids_to_tokens(ids)
                if ids[:1] == [token_id] and not str(tokens[1]).startswith("\u2581"):
                    return text
        return "\n"


def end_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that end a turn or a text: EOS, and the special tokens, one of which the template ends a turn with."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return _eos_ids(tokenizer) | {i for i, token in added.items() if token.special}


def _eos_ids(tokenizer: Any) -> frozenset[int]:
    eos = getattr(tokenizer, "eos_token_ids", None)  # several in mlx-lm's wrapper, one in transformers
    if not isinstance(eos, (set, list, tuple)):
        eos = [getattr(tokenizer, "eos_token_id", None)]
    return frozenset(i for i in eos if i is not None)


def _pattern(texts: Any) -> re.Pattern[str] | None:
    ordered = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
