"""What the lines of a file of verdicts hold; a line that is known is not parsed again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mlx_dpo.web.preference_file import FileStamp, PreferenceFile

ValueT = TypeVar("ValueT")


class ParsedLines(Generic[ValueT]):
    """A value for each line of a file, read again when the file has changed."""

    def __init__(self, file: PreferenceFile, parse: Callable[[bytes], ValueT]) -> None:
        """Start without lines.

        Args:
            file: the file.
            parse: the value of a line, which depends on nothing else.
        """
        self.file, self._parse, self._lock = file, parse, threading.Lock()
        self._stamp: FileStamp = None
        self._known: dict[bytes, ValueT] = {}
        self._values: Sequence[ValueT] = ()

    def values(self) -> Sequence[ValueT]:
        """The values of all lines, in order. Raises `UserError` if the file can't be read."""
        with self._lock:
            if self._stamp is None or self.file.stamp() != self._stamp:
                self._stamp, lines = self.file.lines()
                self._known = {line: self._known[line] if line in self._known else self._parse(line) for line in lines}
                self._values = tuple(self._known[line] for line in lines)
            return self._values
