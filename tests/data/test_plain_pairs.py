"""Rows of three texts: parsed without the formats, and to what the formats would parse them to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.data import row_parsing
from mlx_dpo.data.plain_pairs import parse_plain_pair
from mlx_dpo.data.row_parsing import parse_pairs
from mlx_dpo.errors import RowError, Where

WHERE = Where("rows.jsonl", 1)
COLUMNS = ("prompt", "chosen", "rejected")
ORDINARY = {"prompt": "Why is the sky blue?", "chosen": " It scatters blue light.", "rejected": "天空 is blue"}
# Values, and pieces of texts, on which the formats, the warnings and the checks depend.
VALUES: list[Any] = [
    *("Why is the sky blue?", " Why is the sky blue? ", "Why is the sky blue? It is.", "Human: hi\n\nAssistant: well"),
    *(
        '[{"role": "user", "content": "x"}]',
        ' {"role": "assistant", "content": "x"}',
        "word",
        "words",
        "天空",
        "é\ud83d",
    ),
    *("é\ud83d", " ", "\u200b", None, 1, ["a"], [{"role": "assistant", "content": "yes"}]),
]
PIECES = ["Human:", "\n\nAssistant:", "[", "{", " ", "\n", "\u200b", "\ufeff", "\u00a0", "\ud83d", "é", "天", "?", "1"]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=4).map("".join)


def outcome(row: dict[str, Any]) -> object:
    """All that a row gives: the pairs with their warnings, or the error."""
    try:
        return [(repr(pair), pair.warnings) for pair in parse_pairs(row, WHERE)]
    except RowError as error:
        return str(error), error.kind


def check_row(row: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_parsing, "parse_plain_pair", lambda row: None)
        expected = outcome(row)
    assert outcome(row) == expected


def test_it_is_what_the_formats_make_of_it() -> None:
    for values in itertools.product(VALUES, repeat=3):
        check_row(dict(zip(COLUMNS, values, strict=True)))


@given(st.fixed_dictionaries(dict.fromkeys(COLUMNS, texts)))
def test_it_is_what_the_formats_make_of_any_texts(row: dict[str, Any]) -> None:
    check_row(row)


def test_ordinary_rows_take_this_way() -> None:
    assert parse_plain_pair(ORDINARY) == parse_pairs(ORDINARY, WHERE)[0]


@pytest.mark.parametrize(
    "more",
    [{"id": 7}, {"chosen": ORDINARY["rejected"]}, {"chosen": "Why is the sky blue? It is."}, {"rejected": "\u200b"}],
)
def test_rows_that_need_a_closer_look_do_not(more: dict[str, Any]) -> None:
    assert parse_plain_pair({**ORDINARY, **more}) is None
