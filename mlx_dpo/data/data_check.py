"""What is in a file of examples: its shapes, problems, repetitions and lengths, from one reading of it."""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from mlx_dpo.data.chat_encoding import ExampleEncoder
from mlx_dpo.data.column_mapping import rename_columns, with_renamed_columns
from mlx_dpo.data.data_warnings import NUM_FIRST_LOCATIONS, DataWarnings, Occurrences
from mlx_dpo.data.encoded_example import EncodedExample
from mlx_dpo.data.encoding_warnings import encoding_warnings
from mlx_dpo.data.examples import Example, Pair
from mlx_dpo.data.row_parsing import parse_examples, row_format_label
from mlx_dpo.data.row_reading import OnProgress, read_rows
from mlx_dpo.data.row_warnings import EQUAL_COMPLETIONS
from mlx_dpo.errors import RowError, UserError, Where

QUANTILES = {"min": 0.0, "5%": 0.05, "50%": 0.5, "95%": 0.95, "max": 1.0}
_FIRST_PROBLEMS = 20


def _uint32() -> array[int]:
    return array("I")


@dataclass
class TokenLengths:
    """Token lengths of the examples under a model's tokenizer, and what its template does to them.

    Attributes:
        max_length: the limit to which examples are truncated, tokens.
        by_column: token lengths before truncation, by column: prompt, chosen, rejected or completion.
        truncated: examples that were truncated.
        prefix_mismatches: examples whose rendered prompt is not a prefix of the rendered conversation.
    """

    max_length: int
    by_column: defaultdict[str, array[int]] = field(default_factory=lambda: defaultdict(_uint32))
    truncated: Occurrences = field(default_factory=Occurrences)
    prefix_mismatches: Occurrences = field(default_factory=Occurrences)

    def add(self, encoded: EncodedExample, where: Where) -> None:
        """Count an example."""
        names = ("chosen", "rejected") if isinstance(encoded.example, Pair) else ("completion",)
        for name, length in zip(("prompt", *names), encoded.lengths_before_cut, strict=True):
            self.by_column[name].append(length)
        if encoded.truncated:
            self.truncated.add(where)
        if not encoded.prompt_is_prefix:
            self.prefix_mismatches.add(where)

    def quantiles(self) -> dict[str, dict[str, int]]:
        """The `QUANTILES` of each column's lengths."""
        return {name: _quantiles(lengths) for name, lengths in self.by_column.items()}


def _quantiles(lengths: array[int]) -> dict[str, int]:
    values = np.quantile(np.frombuffer(lengths, np.uint32), list(QUANTILES.values()), method="nearest")
    return {name: int(value) for name, value in zip(QUANTILES, values, strict=True)}


class DataCheck:
    """Everything `mlx-dpo data check` tells about some files. Memory: some 30 bytes an example."""

    def __init__(
        self,
        encoder: ExampleEncoder | None = None,
        *,
        columns: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Start without rows.

        Args:
            encoder: truncates what is too long; without it, tokens are not checked.
            columns: names of columns, see `with_renamed_columns`.
        """
        self.renamed_columns = columns
        self.files: list[str] = []
        self.rows, self.pairs, self.completions = 0, 0, 0
        self.row_formats: Counter[str] = Counter()
        self.problems: list[RowError] = []
        self.problem_kinds: Counter[str] = Counter()
        self.rows_without_pairs = Occurrences()
        self.warnings = DataWarnings()
        self.lengths = TokenLengths(encoder.max_length) if encoder is not None else None
        self._encoder = encoder
        self._hashes, self._lines, self._files = array("q"), _uint32(), array("H")

    def add_file(self, path: str, on_progress: OnProgress | None = None) -> None:
        """Take in a file. Raises `UserError` if it can't be read at all."""
        self.files.append("stdin" if path == "-" else path)
        before = self.rows
        for row in read_rows(
            path, self._count_bad_row, on_progress, with_renamed_columns(self.renamed_columns, parse_examples)
        ):
            self.rows += 1
            self.row_formats[row_format_label(rename_columns(row.value, self.renamed_columns))] += 1
            if not row.examples:
                self.rows_without_pairs.add(row.where)
            for example in row.examples:
                self._add_example(example, row.where)
        if self.rows == before:
            raise UserError("holds no rows", where=Where(self.files[-1]))

    def _count_bad_row(self, error: RowError) -> None:
        self.rows += 1
        self._record_problem(error)

    def _record_problem(self, error: RowError) -> None:
        self.problem_kinds[error.kind] += 1
        if len(self.problems) < _FIRST_PROBLEMS:
            self.problems.append(error)

    def _add_example(self, example: Example, where: Where) -> None:
        if isinstance(example, Pair):
            self.pairs += 1
        else:
            self.completions += 1
        self.warnings.add_examples([example], where)
        self._hashes.append(_hash(example))
        self._lines.append(where.line or 0)
        self._files.append(len(self.files) - 1)
        if self._encoder is not None and self.lengths is not None:
            try:
                encoded = self._encoder(example, where)
            except RowError as error:
                return self._record_problem(error)
            if encoded is not None:
                self.lengths.add(encoded, where)
                for kind in encoding_warnings(encoded):
                    self.warnings.add(kind, where)
        return None

    def duplicates(self) -> Occurrences:
        """Examples that occurred before, in this file or an earlier one."""
        hashes = np.frombuffer(self._hashes, np.int64) if self._hashes else np.empty(0, np.int64)
        order = np.argsort(hashes, kind="stable")
        again = np.sort(order[1:][np.diff(hashes[order]) == 0])
        first = [Where(self.files[self._files[i]], self._lines[i]) for i in again[:NUM_FIRST_LOCATIONS]]
        return Occurrences(len(again), first)

    def to_json(self) -> dict[str, Any]:
        """The results as plain values."""
        values: dict[str, Any] = {
            "files": self.files,
            "rows": self.rows,
            "pairs": self.pairs,
            "completions": self.completions,
            "shapes": dict(self.row_formats.most_common()),
            "problems": self.problem_kinds.total(),
            "problem_kinds": dict(self.problem_kinds.most_common()),
            "first_problems": [_problem_json(error) for error in self.problems],
            "rows_without_pairs": self.rows_without_pairs.to_json(),
            "duplicates": self.duplicates().to_json(),
            "equal_sides": self.warnings.count(EQUAL_COMPLETIONS).to_json(),
        }
        if self.lengths:
            values["tokens"] = self.lengths.quantiles()
            values["max_length"] = self.lengths.max_length
            values["cut"] = self.lengths.truncated.to_json()
            values["prefix_not_held"] = self.lengths.prefix_mismatches.to_json()
        values["warnings"] = self.warnings.to_json()
        return values


def _hash(example: Example) -> int:
    parts = (example.prompt, *example.completions)
    return hash(parts if isinstance(example.prompt, str) else json.dumps(parts, sort_keys=True))


def _problem_json(error: RowError) -> dict[str, Any]:
    where = error.where or Where("")
    return {
        "file": where.file,
        "line": where.line,
        "field": error.field,
        "kind": error.kind,
        "message": error.message,
        "hint": error.hint,
    }
