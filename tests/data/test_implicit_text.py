"""Plain texts without a prompt column are parted between words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.data.examples import Pair
from mlx_dpo.data.implicit_text import common_prompt_length
from mlx_dpo.data.row_parsing import parse_pairs
from mlx_dpo.errors import RowError, Where

WHERE = Where("rows.jsonl", 7)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Why a magnet? I think it pulls iron.", "Why a magnet? I thought you knew.", "Why a magnet? I"),
        ("Why a magnet?\nIt pulls iron.", "Why a magnet?\nIts poles do.", "Why a magnet?\n"),
        ("It costs 3.14 euros.", "It costs 3.15 euros.", "It costs"),
        ("I say don't go.", "I say don'ts are rare.", "I say"),
        ("A magnet pulls iron.", "A magnet pulls iron, I guess.", "A magnet pulls"),
        ("A magnet pulls", "A magnet pulls iron.", None),  # nothing is left of the chosen one
        ("Iron", "Irony", None),
        ("天空是蓝色的。", "天空是绿色的。", "天空是"),
        ("The 天空 abc", "The 天空 abd", "The 天空"),
        ("Q: cafe\u0301 one", "Q: cafe\u0301s two", "Q:"),
    ],
)
def test_the_border(chosen: str, rejected: str, prompt: str | None) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    if prompt is None:
        with pytest.raises(RowError):
            parse_pairs(row, WHERE)
    else:
        assert parse_pairs(row, WHERE) == [Pair(prompt, chosen[len(prompt) :], rejected[len(prompt) :])]


@given(st.text("ab ,.\n天", max_size=8), st.text("ab ,.\n天", max_size=8), st.text("ab ,.\n天", max_size=8))
def test_no_word_is_split(start: str, one: str, other: str) -> None:
    first, second = start + one, start + other
    length = common_prompt_length(first, second)
    assert first[:length] == second[:length]
    for text in (first, second):
        around = text[max(length - 1, 0) : length + 1]
        assert not (len(around) == 2 and length and around.isascii() and not any(c.isspace() for c in around))
