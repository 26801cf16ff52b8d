"""How many rows of which kind a file of verdicts has, and which prompts they judge."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

from mlx_dpo.web.preference_file import FileStamp, PreferenceFile, parse_row


class RowTally:
    """Read again when the file has changed, at each verdict; lines that it knows are not parsed again."""

    def __init__(self, file: PreferenceFile) -> None:
        """Start without rows.

        Args:
            file: the file.
        """
        self.file, self._lock = file, threading.Lock()
        self._stamp: FileStamp = None
        self._known: dict[bytes, tuple[str, str]] = {}
        self._kinds: Counter[str] = Counter()

    def kinds(self) -> Counter[str]:
        """How many rows are a preference, a tie or a label. Raises `UserError` if the file can't be read."""
        with self._lock:
            self._refresh()
            return self._kinds.copy()

    def prompts(self) -> set[str]:
        """The `prompt_key` of each row. Raises `UserError` if the file can't be read."""
        with self._lock:
            self._refresh()
            return {prompt for _, prompt in self._known.values()}

    def _refresh(self) -> None:
        if self._stamp is not None and self.file.stamp() == self._stamp:
            return
        self._stamp, lines = self.file.lines()
        known = {line: self._known.get(line) or _read(line) for line in lines}
        self._kinds = Counter(known[line][0] for line in lines)
        self._known = known


def prompt_key(prompt: Any) -> str:
    """What is equal for equal prompts: texts, or lists of turns."""
    return json.dumps(prompt, sort_keys=True)


def _read(line: bytes) -> tuple[str, str]:
    row = parse_row(line)
    if row is None:
        return "", ""
    kind = "preference" if "chosen" in row else "label" if "label" in row else "tie"
    return kind, prompt_key(row.get("prompt"))
