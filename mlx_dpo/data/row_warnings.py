"""Warnings about rows that are found when they are parsed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from mlx_dpo.data.conversations import TextOrMessages
from mlx_dpo.data.data_warnings import RowWarning, WarningKind
from mlx_dpo.data.examples import Example, Pair
from mlx_dpo.data.formats.implicit_prompt import ImplicitPrompt
from mlx_dpo.data.formats.row_columns import COMMON_COLUMNS, Row, ignored_system
from mlx_dpo.data.formats.row_format import RowFormat

EQUAL_COMPLETIONS = WarningKind(
    "equal_completions",
    "chosen and rejected are equal",
    "Nothing can be learned from them: `mlx-dpo data fix` leaves them out.",
)
IMPLICIT_TEXT = WarningKind(
    "implicit_text",
    "there is no prompt column, and the prompt is the words with which both texts begin",
    "Give a `prompt` where it ends elsewhere; `mlx-dpo data show` shows where it ends.",
)
UNUSED_COLUMNS = WarningKind(
    "unused_columns",
    "text columns are not used",
    "If one of them should be, name it with --prompt-column and the like.",
)
SYSTEM_IGNORED = WarningKind(
    "system_ignored",
    "the `system` column differs from the system turn of the conversation, and is not used",
    "Remove one of them.",
)
TABLE_NULLS = WarningKind(
    "table_nulls",
    "nulls that a table format had put into tools or tool calls were left out",
    "`mlx-dpo data fix` writes the rows without them.",
)
DUPLICATE_KEYS = WarningKind(
    "duplicate_keys", "an object has the same key twice, and only the last value is read", "Remove one of them."
)
PROMPT_REPEATED = WarningKind(
    "prompt_repeated",
    "a completion begins with the text of its prompt, which the model would learn to repeat",
    "Take the prompt out of the completions.",
)
INVISIBLE_COMPLETION = WarningKind(
    "invisible_completion", "a completion has only characters of zero width", "Leave such rows out."
)

_INVISIBLE = "".join(map(chr, (0x200B, 0x200C, 0x200D, 0x2060, 0x2061, 0x2062, 0x2063, 0x2064, 0xFEFF, 0x00AD, 0x180E)))
_BLANK = _INVISIBLE + " \t\n\r\f\v\u00a0"
_NEVER_CONTENT = ("id", "labeller")  # columns that nobody means to train on
_MIN_REPEATED = 4  # characters of a prompt that is found again


def row_warnings(row: Row, row_format: RowFormat, examples: Sequence[Example]) -> list[RowWarning]:
    """The warnings about a row that was parsed. This runs for every row, so what most rows lack is looked for first.

    Args:
        row: its columns.
        row_format: the format that parsed it.
        examples: what it was parsed to.
    """
    warnings = []
    if others := _other_columns(row_format, row):
        unused = tuple([name for name in others if name not in _NEVER_CONTENT and _is_text(row[name])])
        if unused:
            warnings.append(_unused_warning(unused))
    if not examples:
        return warnings
    prompt = examples[0].prompt
    if isinstance(prompt, str):
        if isinstance(row_format, ImplicitPrompt):
            warnings.append(RowWarning(IMPLICIT_TEXT))
    elif ignored_system(row, prompt):
        warnings.append(RowWarning(SYSTEM_IGNORED))
    kinds = {kind for example in examples for kind in _completion_kinds(example)}
    if kinds:
        in_order = (EQUAL_COMPLETIONS, PROMPT_REPEATED, INVISIBLE_COMPLETION)
        warnings += [RowWarning(kind) for kind in in_order if kind in kinds]
    return warnings


@functools.lru_cache(maxsize=4096)
def _unused_warning(names: tuple[str, ...]) -> RowWarning:
    return RowWarning(UNUSED_COLUMNS, names)


def _completion_kinds(example: Example) -> list[WarningKind]:
    kinds = []
    if isinstance(example, Pair) and example.chosen == example.rejected:
        kinds.append(EQUAL_COMPLETIONS)
    prompt = _text(example.prompt, -1)
    is_long = len(prompt) >= _MIN_REPEATED
    for completion in example.completions:
        text = _text(completion, 0)
        if is_long and text.startswith(prompt) and _continues_separately(prompt, text):
            kinds.append(PROMPT_REPEATED)
        if _is_invisible(completion):
            kinds.append(INVISIBLE_COMPLETION)
    return kinds


def _text(value: TextOrMessages, turn: int) -> str:
    return value.strip() if isinstance(value, str) else str(value[turn]["content"]).strip()


def _continues_separately(prompt: str, text: str) -> bool:
    """Whether the prompt is a sentence or a paragraph of its own at the text's beginning, not just a word."""
    return len(text) > len(prompt) and (text[len(prompt)].isspace() or not prompt[-1].isalnum())


def _is_invisible(value: TextOrMessages) -> bool:
    if not isinstance(value, str):
        last = value[-1]
        return last.keys() == {"role", "content"} and not last["content"].strip(_BLANK)
    return not value.strip(_BLANK)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not value.isspace()


def _other_columns(row_format: RowFormat, row: Row) -> tuple[str, ...]:
    """The columns that are not read, which depend on the format and on the columns that there are."""
    kind, columns = type(row_format), tuple([column for column, value in row.items() if value is not None])
    cached = _unread_columns.get((kind, columns))
    if cached is None:
        read = set(row_format.columns_read(row)) | COMMON_COLUMNS
        cached = tuple(column for column in columns if column not in read)
        if len(_unread_columns) < _MAX_CACHED:
            _unread_columns[kind, columns] = cached
    return cached


_MAX_CACHED = 4096
_unread_columns: dict[tuple[type[RowFormat], tuple[str, ...]], tuple[str, ...]] = {}
