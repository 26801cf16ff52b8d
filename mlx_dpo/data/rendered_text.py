"""Takes texts apart that a chat template had rendered before they were written into rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.conversations import TextOrMessages, as_messages
from mlx_dpo.data.examples import Completion, Pair, Prompt
from mlx_dpo.data.messages import Message
from mlx_dpo.errors import RowError

_MAX_TURNS = 256


class RenderedTextParser:
    """Parses what a model's chat template renders back to messages.

    Args:
        renderer: renders under that template.
    """

    def __init__(self, renderer: ChatRenderer) -> None:
        self._renderer, self._special = renderer, renderer.special_tokens
        self._has_template = renderer.has_chat_template and not renderer.raw
        self._openings: dict[str, list[str]] = {}
        self._separators: dict[tuple[str, str], str] = {}
        if self._has_template:
            self._find_separators()

    def has_special_tokens(self, example: Pair | Completion) -> bool:
        """Whether a text of an example contains one of the model's special tokens."""
        values = (example.prompt, *example.completions)
        texts = [text for value in values for text in _texts(value)]
        return self._has_template and any(self._special.find_in(text) for text in texts)

    def parse(self, example: Pair | Completion) -> Pair | Completion | None:
        """The example as it was before it was rendered; None where that can't be recovered.

        A prompt is parsed if the template renders the parsed one to the very text. At its end and that of an answer
        special tokens are left out.
        """
        prompt = example.prompt if isinstance(example.prompt, str) else None
        if prompt is not None and self._special.find_in(prompt):
            parsed = self._parse_prompt(prompt)
            if parsed is None:
                return None
            example = replace(example, prompt=parsed)
        if isinstance(example, Pair):
            chosen, rejected = self._strip(example.chosen), self._strip(example.rejected)
            stripped: Pair | Completion = replace(example, chosen=chosen, rejected=rejected)
        else:
            stripped = replace(example, completion=self._strip(example.completion))
        if not isinstance(stripped.prompt, str):
            stripped = _as_messages(stripped)
        return None if self.has_special_tokens(stripped) else stripped

    def _strip(self, value: TextOrMessages) -> TextOrMessages:
        if isinstance(value, str):
            return self._strip_ends(value)
        return [{**message, "content": self._strip_ends(message["content"])} for message in value]

    def _strip_ends(self, text: str) -> str:
        """A text without the special tokens at its beginning and at its end."""
        while begin := self._special.begins(text.lstrip()):
            text = text.lstrip().removeprefix(begin)
        while self._special.ends_with(text):
            text = text.rstrip()
            start = next(i for i in range(len(text)) if self._special.begins(text[i:]) == text[i:])
            text = text[:start].rstrip()
        return text

    def _parse_prompt(self, text: str) -> TextOrMessages | None:
        bos = self._special.begins(text.lstrip())
        if bos and not any(bos in separator for separator in self._separators.values()):
            without = text.lstrip().removeprefix(bos)  # no header of a turn, whose rest would stay
            if not self._special.find_in(without):
                return without
        for role, openings in self._openings.items():
            for opening in openings:
                if text.lstrip().startswith(opening):
                    messages = self._split_turns(text.lstrip().removeprefix(opening), role)
                    if messages and self._renders_to(messages, text):
                        return messages
        return None

    def _split_turns(self, text: str, role: str) -> list[Message] | None:
        """The turns of a text that begins inside the first one, which is of a role."""
        messages: list[Message] = []
        while len(messages) < _MAX_TURNS:
            ends = [
                (at, separator, following)
                for (speaker, following), separator in self._separators.items()
                if speaker == role and (at := text.find(separator)) >= 0
            ]
            if not ends:
                return messages if role == "assistant" and not text.strip() else None
            at, separator, following = min(ends)
            messages.append({"role": role, "content": text[:at]})
            text, role = text[at + len(separator) :], following
        return None

    def _renders_to(self, messages: Sequence[Message], text: str) -> bool:
        """Whether the template renders messages to a text, or to one that ends in it: after BOS or a system turn."""
        with suppress(RowError):
            chat = self._renderer.as_chat(Prompt(list(messages)))
            if chat is not None:
                return self._renderer.text(self._renderer.render_prompt(chat)).rstrip().endswith(text.strip())
        return False

    def _find_separators(self) -> None:
        """Find the text before the first turn, by its role, and between two turns, by their roles."""
        for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user")):
            messages = [{"role": role, "content": f"mlxdpo{role}{i}"} for i, role in enumerate(roles)]
            with suppress(RowError):
                chat = self._renderer.as_chat(Prompt(messages))
                if chat is None:
                    continue
                rest, pieces = self._renderer.text(self._renderer.render_prompt(chat)), []
                for message in messages:
                    piece, _, rest = rest.partition(message["content"])
                    pieces.append(piece)
                self._separators |= dict(zip(pairwise(roles), pieces[1:], strict=True))
                # longest first: BOS and a system turn of the template's own may be absent from the text
                starts = (i for i in range(len(pieces[0])) if i == 0 or self._special.begins(pieces[0][i:]))
                self._openings[roles[0]] = [pieces[0][i:] for i in starts]


def _texts(value: TextOrMessages) -> list[str]:
    return [value] if isinstance(value, str) else [message["content"] for message in value]


def _as_messages(example: Pair | Completion) -> Pair | Completion:
    """The example with completions that are messages."""
    if isinstance(example, Pair):
        return replace(example, chosen=as_messages(example.chosen), rejected=as_messages(example.rejected))
    return replace(example, completion=as_messages(example.completion))
