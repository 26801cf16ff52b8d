"""How many rows of which kind a file of verdicts has, and which prompts they judge."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

from mlx_dpo.data.messages import Message
from mlx_dpo.web.parsed_lines import ParsedLines
from mlx_dpo.web.preference_file import PreferenceFile, parse_row


class RowTally:
    """The counts are right at once when the file has changed."""

    def __init__(self, file: PreferenceFile) -> None:
        """Start without rows.

        Args:
            file: the file.
        """
        self._rows = ParsedLines(file, _read)

    def kinds(self) -> Counter[str]:
        """How many rows are a preference, a tie or a label. Raises `UserError` if the file can't be read."""
        return Counter(kind for kind, _ in self._rows.values())

    def prompts(self) -> set[str]:
        """The `prompt_key` of each row. Raises `UserError` if the file can't be read."""
        return {prompt for _, prompt in self._rows.values()}


def prompt_key(prompt: Any) -> str:
    """What is equal for equal prompts: texts, or lists of turns."""
    return json.dumps(prompt, sort_keys=True)


def text_or_messages(messages: Sequence[Message]) -> Any:
    """A conversation as it is in a file of preferences: the text of a single turn, else the turns."""
    return messages[0]["content"] if len(messages) == 1 else list(messages)


def next_prompt(prompts: Sequence[Sequence[Message]], start: int, known: Set[str]) -> int | None:
    """The number of the first prompt from `start` on whose `prompt_key` isn't known; None if there is none."""
    keys = (prompt_key(text_or_messages(prompts[index])) for index in range(start, len(prompts)))
    return next((index for index, key in enumerate(keys, start) if key not in known), None)


def _read(line: bytes) -> tuple[str, str]:
    row = parse_row(line)
    if row is None:
        return "", ""
    kind = "preference" if "chosen" in row else "label" if "label" in row else "tie"
    return kind, prompt_key(row.get("prompt"))
