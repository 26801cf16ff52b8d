"""Changes to the files of verdicts that can be undone, made only to rows that still are what the page shows."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx_dpo.errors import UserError
from mlx_dpo.web.preference_file import PreferenceFile
from mlx_dpo.web.stored_row import line_digest

_KEPT_CHANGES = 200
_CHANGED_HINT = "Another tab or program has changed the file; the list now shows what it holds."


@dataclass(frozen=True, slots=True)
class RowAddress:
    """Where a row is.

    Attributes:
        file: name of the file, "preferences" or "labels".
        line: number of its line, from 1.
        digest: of the line, as `line_digest` gives it.
    """

    file: str
    line: int
    digest: str

    @classmethod
    def from_json(cls, value: Any, files: Mapping[str, Any]) -> RowAddress:
        """Read an address that the page sent. Raises `UserError`."""
        if isinstance(value, Mapping) and isinstance(value.get("file"), str) and value["file"] in files:
            line, digest = value.get("line"), value.get("digest")
            if isinstance(line, int) and not isinstance(line, bool) and isinstance(digest, str):
                return cls(value["file"], line, digest)
        raise UserError("must have the `file`, `line` and `digest` of a row", field="row")

    def find(self, lines: Sequence[bytes]) -> int:
        """The index of its line in a file's lines, see `find_row`. Raises `UserError`."""
        index = self.line - 1
        if 0 <= index < len(lines) and line_digest(lines[index]) == self.digest:
            return index
        return self.find_row([(number, line_digest(line)) for number, line in enumerate(lines, 1)])

    def find_row(self, rows: Sequence[tuple[int, str]]) -> int:
        """The index of a row: where it was or, if lines before it came or went, the nearest that is the same.

        Args:
            rows: (line number, digest) of each.

        Raises:
            UserError: no row has this content any more.
        """
        same = [i for i, (_, digest) in enumerate(rows) if digest == self.digest]
        if not same:
            raise UserError("this row was changed or deleted meanwhile: nothing was done", hint=_CHANGED_HINT)
        return min(same, key=lambda i: abs(rows[i][0] - self.line))


@dataclass(frozen=True, slots=True)
class LineChange:
    """A line that was replaced, deleted (`after` is None) or appended (`before` is None).

    Attributes:
        file: its file's name.
        line: the number that it has or had, from 1.
        before, after: the line with its end.
    """

    file: str
    line: int
    before: bytes | None
    after: bytes | None


class RowChanges:
    """Edits, deletes and appends rows. All other lines stay as they are, byte for byte."""

    def __init__(self, files: Mapping[str, PreferenceFile]) -> None:
        """Start without changes.

        Args:
            files: by name.
        """
        self._files, self._lock = files, threading.Lock()
        self._changes: dict[str, list[LineChange]] = {}

    def edit(self, address: RowAddress, change: Callable[[bytes], bytes]) -> tuple[str, LineChange]:
        """Replace a row.

        Args:
            address: the row.
            change: gives the new line.

        Returns:
            An id for `undo`, and the change.

        Raises:
            UserError: the row is no longer what it was, `change` raises it, or the file can't be written.
        """
        done: list[LineChange] = []

        def replace(lines: list[bytes]) -> list[bytes]:
            index = address.find(lines)
            before, lines[index] = lines[index], change(lines[index])
            done[:] = [LineChange(address.file, index + 1, before, lines[index])]
            return lines

        self._files[address.file].rewrite(replace)
        return self._remember(done), done[0]

    def delete(self, address: RowAddress) -> str:
        """Delete a row, and return an id for `undo`. Raises `UserError`, as `edit`."""
        done: list[LineChange] = []

        def remove(lines: list[bytes]) -> list[bytes]:
            index = address.find(lines)
            done[:] = [LineChange(address.file, index + 1, lines.pop(index), None)]
            return lines

        self._files[address.file].rewrite(remove)
        return self._remember(done)

    def append(self, lines: Mapping[str, Sequence[bytes]]) -> str:
        """Append lines to the files by name, and return an id for `undo`.

        Raises:
            UserError: a file can't be written; then none has new lines.
        """
        done: list[LineChange] = []
        for name, added in lines.items():
            try:
                if added:
                    self._files[name].append_lines(added)
            except UserError:
                self._revert(done)
                raise
            done += [LineChange(name, 0, None, line) for line in added]
        return self._remember(done)

    def undo(self, change_id: str) -> None:
        """Take a change back.

        Raises:
            UserError: there is no such change, its row was changed since, or a file can't be written.
        """
        with self._lock:
            changes = self._changes.get(change_id)
            if changes is None:
                raise UserError("this change can't be undone any more: the server was started again since")
            self._revert(changes)
            self._changes.pop(change_id)

    def _remember(self, changes: Sequence[LineChange]) -> str:
        change_id = secrets.token_hex(8)
        with self._lock:
            self._changes[change_id] = list(changes)
            while len(self._changes) > _KEPT_CHANGES:
                del self._changes[next(iter(self._changes))]
        return change_id

    def _revert(self, changes: Sequence[LineChange]) -> None:
        for name in dict.fromkeys(change.file for change in changes):
            own = [change for change in changes if change.file == name]
            self._files[name].rewrite(partial(_reverted, own))


def _reverted(changes: Sequence[LineChange], lines: list[bytes]) -> list[bytes]:
    appended = [change.after for change in changes if change.before is None and change.after is not None]
    if appended:
        return _without_last(lines, appended)
    for change in changes:
        assert change.before is not None
        if change.after is None:
            _insert(lines, change.line - 1, change.before)
        else:
            index = RowAddress(change.file, change.line, line_digest(change.after)).find(lines)
            lines[index] = change.before
    return lines


def _insert(lines: list[bytes], index: int, line: bytes) -> None:
    index = min(index, len(lines))
    if index == len(lines) and lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    if index < len(lines) and not line.endswith(b"\n"):
        line += b"\n"
    lines.insert(index, line)


def _without_last(lines: list[bytes], removed: Sequence[bytes]) -> list[bytes]:
    """Lines without the last occurrence of each of those that were appended, as far as they are still there."""
    left = Counter(removed)
    kept = []
    for line in reversed(lines):
        if left[line]:
            left[line] -= 1
        else:
            kept.append(line)
    return kept[::-1]
