"""Rewrites a file of rows without what hinders training; everything that is changed is listed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from mlx_dpo.data.chat_rendering import ChatRenderer
from mlx_dpo.data.column_mapping import rename_columns
from mlx_dpo.data.conversations import as_messages
from mlx_dpo.data.examples import Completion, Example, Pair
from mlx_dpo.data.files.json_lines import parse_json_line
from mlx_dpo.data.files.row_files import open_rows
from mlx_dpo.data.files.row_output import open_output
from mlx_dpo.data.formats import find_row_format
from mlx_dpo.data.formats.row_columns import COMMON_COLUMNS
from mlx_dpo.data.rendered_text import RenderedTextParser
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.data.row_reading import OnProgress
from mlx_dpo.data.row_warnings import INVISIBLE_COMPLETION
from mlx_dpo.data.table_nulls import strip_table_nulls
from mlx_dpo.data.template_errors import merge_system_turns
from mlx_dpo.data.text_values import decode_text_values
from mlx_dpo.errors import RowError, UserError, Where

CHANGES = {  # kinds of changes, and what they are
    "equal_completions": "left out: chosen and rejected are equal",
    "empty": "left out: a prompt or a completion is empty",
    "duplicate": "left out: the same example is on line {line}",
    "unreadable": "left out: {reason}",
    "table_nulls": "nulls of a table format were taken out of tools and tool calls",
    "special_tokens": "texts that a chat template had rendered were parsed to messages, without special tokens",
    "system_moved": "the system turn, which the model's template refuses, was put in front of the first user turn",
}
NOT_FIXED = "not_fixed"  # kind of a row with a problem that is written as it was


@dataclass(frozen=True)
class RowChange:
    """A change of a row, or a problem that was not fixed.

    Attributes:
        where: the row's location.
        kind: of the change; `NOT_FIXED` if the row was not changed.
        message: what was changed, or why it was not.
    """

    where: Where
    kind: str
    message: str


@dataclass
class FixReport:
    """What became of a file's rows.

    Attributes:
        rows: rows read.
        written: lines written.
        changes: in the order of the rows; a row may have several.
    """

    rows: int = 0
    written: int = 0
    changes: list[RowChange] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """How many changes there are of each kind."""
        return dict(Counter(change.kind for change in self.changes).most_common())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        changes = [
            {"file": change.where.file, "line": change.where.line, "kind": change.kind, "message": change.message}
            for change in self.changes
        ]
        return {"rows": self.rows, "written": self.written, "changes": self.counts(), "changed_rows": changes}


def fix_rows(
    source: str,
    out: str,
    *,
    renderer: ChatRenderer | None = None,
    columns: Mapping[str, str] = MappingProxyType({}),
    on_progress: OnProgress | None = None,
) -> FixReport:
    """Write a file's rows as JSON lines, fixed. A row that needs nothing is copied byte for byte.

    Args:
        source: a file of rows, or `-` for stdin.
        out: the new file, gzip-compressed if its name ends in .gz, or `-` for stdout. It is written atomically.
        renderer: of the model; without it, what depends on its chat template is not looked at.
        columns: names of columns, see `with_renamed_columns`.
        on_progress: called at most every quarter of a second with the fraction that is read.

    Raises:
        UserError: the file can't be read or written, or holds no rows.
    """
    report, last_progress = FixReport(), time.monotonic()
    with open_rows(source) as stream, open_output(out, source) as write:
        fixer = RowFixer(report, renderer, columns)
        while True:
            try:
                number, _, line = next(stream.lines)
            except StopIteration:
                break
            except RowError as error:  # there are no bytes to write
                report.rows += 1
                report.changes.append(
                    RowChange(error.where or Where(stream.name), "unreadable", f"left out: {error.message}")
                )
                continue
            report.rows += 1
            for fixed in fixer.fix(line, Where(stream.name, number)):
                write(fixed if fixed.endswith(b"\n") else fixed + b"\n")
                report.written += 1
            if on_progress and time.monotonic() - last_progress > 0.25:
                last_progress = time.monotonic()
                on_progress(stream.fraction_read())
        if not report.rows:
            raise UserError("holds no rows", where=Where(stream.name))
    return report


class RowFixer:
    """Fixes rows one after the other, and appends what it changes to a report.

    Args:
        report: receives the changes.
        renderer: of the model, or None.
        columns: names of columns, see `with_renamed_columns`.
    """

    def __init__(self, report: FixReport, renderer: ChatRenderer | None, columns: Mapping[str, str]) -> None:
        self._report, self._renderer, self._columns = report, renderer, columns
        self._parser = RenderedTextParser(renderer) if renderer is not None else None
        self._first_lines: dict[int, int] = {}  # by the hash of a row's examples

    def fix(self, line: bytes, where: Where) -> list[bytes]:
        """The lines that take the place of a row: the row itself if it needs nothing, and none to leave it out."""
        try:
            row = parse_json_line(line, where)
            stripped = strip_table_nulls(row) if isinstance(row, dict) else row
            renamed = rename_columns(stripped, self._columns)
            examples = parse_examples(renamed, where)
        except RowError as error:
            return self._keep_or_drop(line, error)
        if stripped is not row:
            self._add(where, "table_nulls")
            line = _to_line(stripped)
        if not examples:
            return [line]
        if kind := _reason_to_drop(examples):
            return self._add(where, kind)
        fixed = [self._fix_example(example, where) for example in examples]
        key = hash(json.dumps([example.to_row() for example in fixed], sort_keys=True))
        if key in self._first_lines:
            return self._add(where, "duplicate", line=self._first_lines[key])
        self._first_lines[key] = where.line or 0
        if all(new is old for new, old in zip(fixed, examples, strict=True)):
            return [line]
        if kind := _reason_to_drop(fixed):
            return self._add(where, kind)
        unread = _unread_columns(renamed)
        return [_to_line({**unread, **example.to_row()}) for example in fixed]

    def _keep_or_drop(self, line: bytes, error: RowError) -> list[bytes]:
        where = error.where or Where("")
        if error.kind == "empty":
            return self._add(where, "empty")
        return self._not_fixed(line, where, str(error).removeprefix(f"{where}: ").split("\n")[0])

    def _not_fixed(self, line: bytes, where: Where, message: str) -> list[bytes]:
        self._report.changes.append(RowChange(where, NOT_FIXED, message))
        return [line]

    def _add(self, where: Where, kind: str, **values: Any) -> list[bytes]:
        self._report.changes.append(RowChange(where, kind, CHANGES[kind].format(**values)))
        return []

    def _fix_example(self, example: Example, where: Where) -> Example:
        """The example as the model's template takes it; the example itself if it does already."""
        if self._parser is None or self._renderer is None or not isinstance(example, (Pair, Completion)):
            return example
        if self._parser.has_special_tokens(example):
            parsed = self._parser.parse(example)
            if parsed is None:
                self._not_fixed(b"", where, "contains the model's special tokens; --raw takes texts as they are")
            else:
                self._add(where, "special_tokens")
                example = parsed
        return self._move_system(example, where)

    def _move_system(self, example: Pair | Completion, where: Where) -> Pair | Completion:
        if isinstance(example.prompt, str) or self._renderer is None:
            return example
        merged = merge_system_turns(example.prompt)
        if (
            len(merged) == len(example.prompt)
            or self._accepts(example)
            or not self._accepts(replace(example, prompt=merged))
        ):
            return example
        self._add(where, "system_moved")
        return replace(example, prompt=merged)

    def _accepts(self, example: Pair | Completion) -> bool:
        """Whether the template renders an example."""
        assert self._renderer is not None, "there is a model"
        try:
            chat = self._renderer.as_chat(example)
            if chat is not None:
                self._renderer.render_prompt(chat)
                for answer in chat.answers:
                    self._renderer.render(chat, [*chat.prompt, *as_messages(answer)])
        except RowError:
            return False
        return True


def _reason_to_drop(examples: Sequence[Example]) -> str | None:
    """The kind of change that leaves a row out, or None."""
    if all(isinstance(example, Pair) and example.chosen == example.rejected for example in examples):
        return "equal_completions"
    if any(warning.kind is INVISIBLE_COMPLETION for example in examples for warning in example.warnings):
        return "empty"
    return None


def _unread_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row that its examples are not read from, which stay as they are."""
    row_format = find_row_format(decode_text_values(row))
    read = set() if row_format is None else set(row_format.columns_read(row)) | COMMON_COLUMNS
    return {column: value for column, value in row.items() if column not in read}


def _to_line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
