"""Rows of a file or of a pasted text, in any format that `train` reads, as lines for the files of verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_dpo.data.examples import Completion
from mlx_dpo.data.files.file_kinds import table_delimiter
from mlx_dpo.data.files.local_files import open_local_rows
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.data.row_reading import parse_line
from mlx_dpo.errors import RowError, Where
from mlx_dpo.utils.appended_rows import to_json_bytes

LISTED_PROBLEMS = 200
_START_BYTES = 1 << 16


@dataclass
class ImportedRows:
    """What an import holds.

    Attributes:
        lines: by the name of the file that they belong to, with their ends.
        num_bad: rows that can't be used.
        problems: line and message of the first `LISTED_PROBLEMS` of them.
    """

    lines: dict[str, list[bytes]] = field(default_factory=lambda: {"preferences": [], "labels": []})
    num_bad: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)

    def add_problem(self, error: RowError) -> None:
        """Count a row that can't be used."""
        self.num_bad += 1
        if len(self.problems) < LISTED_PROBLEMS:
            line = error.where.line if error.where else None
            error.where = None
            self.problems.append({"line": line, "message": str(error)})


def read_import(path: Path, name: str) -> ImportedRows:
    """Read the rows of an upload.

    Args:
        path: the uploaded content; its suffix says what it is, as that of any file of rows.
        name: what errors call it.

    Returns:
        Single completions for the file of labels, and all other rows for that of preferences, as they are.

    Raises:
        UserError: it can't be read at all.
    """
    imported = ImportedRows()
    with open_local_rows(str(path), name) as stream:
        while True:
            try:
                number, _, line = next(stream.lines)
                where = Where(name, number)
                value, examples = parse_line(line, where, parse_examples)
            except StopIteration:
                return imported
            except RowError as error:
                imported.add_problem(error)
                continue
            file = "labels" if examples and isinstance(examples[0], Completion) else "preferences"
            imported.lines[file].append(_one_line(line, value))


def pasted_suffix(content: bytes) -> str:
    """The suffix of a file with a pasted text: that of a table if it has a header, else that of lines of JSON."""
    delimiter = table_delimiter(content[:_START_BYTES])
    return ".jsonl" if delimiter is None else ".tsv" if delimiter == "\t" else ".csv"


def _one_line(line: bytes, value: dict[str, Any]) -> bytes:
    line = line.strip()
    return (to_json_bytes(value) if b"\n" in line or b"\r" in line else line) + b"\n"
