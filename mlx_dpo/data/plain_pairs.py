"""Rows of three texts, `prompt`, `chosen` and `rejected`: large files have millions, and no format need be tried."""

from __future__ import annotations

import string
from typing import Any, TypeGuard

from mlx_dpo.data.examples import Pair
from mlx_dpo.data.messages import is_hh_dialogue

_NUM_COLUMNS = 3
# Texts that begin otherwise may be blank, invisible, or JSON.
_PLAIN_STARTS = frozenset(string.ascii_letters + string.digits + string.punctuation) - {"[", "{"}
_COMPARED = 4  # characters; a completion that begins otherwise than its prompt does not repeat it


def parse_plain_pair(row: dict[str, Any]) -> Pair | None:
    """The pair of a row of three texts, which the formats would parse to the same pair, without a warning.

    Args:
        row: its columns.

    Returns:
        The pair; None where the row has other columns or values, or may be invalid or worth a warning.
    """
    if len(row) != _NUM_COLUMNS:
        return None
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if not (_is_plain(prompt) and _is_plain(chosen) and _is_plain(rejected)):
        return None
    start = prompt.lstrip()[:_COMPARED]
    if chosen.lstrip().startswith(start) or rejected.lstrip().startswith(start):
        return None
    return None if chosen == rejected or is_hh_dialogue(prompt) else Pair(prompt, chosen, rejected)


def _is_plain(value: Any) -> TypeGuard[str]:
    """Whether a value is text, neither blank nor a list in disguise, and all of it can be encoded."""
    if value.__class__ is not str:
        return False
    first = value[:1]
    if first.isspace():
        first = value.lstrip()[:1]
    if first not in _PLAIN_STARTS and not first.isalpha():
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
