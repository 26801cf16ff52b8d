"""Rows to score: one prompt, all its answers."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_dpo.data.candidate_rows import parse_candidates
from mlx_dpo.data.examples import Candidates
from mlx_dpo.errors import RowError, Where

AT = Where("f.jsonl", 3)


def read(row: Any) -> Candidates:
    (one,) = parse_candidates(row, AT)
    assert isinstance(one, Candidates) and one.row is row
    return one


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_a_pair_is_two_answers_the_first_of_which_is_good() -> None:
    row = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?", "subset": "chat", "id": 7}
    assert (read(row).prompt, read(row).completions, read(row).num_preferred) == ("Hi", ("Hello!", "What?"), 1)


def test_a_single_completion_is_one_answer() -> None:
    for row in ({"prompt": "Hi", "completion": "Hello!", "label": True}, {"prompt": "Hi", "completion": "Hello!"}):
        assert (read(row).completions, read(row).num_preferred) == (("Hello!",), None)


def test_completions_need_no_scores() -> None:
    row = {"prompt": "Hi", "completions": ["a", "b", "c"], "system": "Be kind."}
    one = read(row)
    assert [turn["role"] for turn in one.prompt] == ["system", "user"] and isinstance(one.prompt, list)
    assert one.completions == (said("a"), said("b"), said("c")) and one.num_preferred is None
    assert read({**row, "scores": [1, 2, 3]}).completions == one.completions
    assert read({"prompt": "Hi", "completions": ["a"], "rankings": [1]}).completions == ("a",)


def test_texts_and_messages_may_be_mixed() -> None:
    one = read({"prompt": "Hi", "completions": ["a", said("b")]})
    assert one.prompt == [{"role": "user", "content": "Hi"}] and one.completions == (said("a"), said("b"))


def test_rewardbench_2_has_lists_of_texts() -> None:
    row = {"id": "1", "prompt": "Hi", "chosen": ["a", "b"], "rejected": ["c", "d", "e"], "subset": "Ties"}
    assert (read(row).completions, read(row).num_preferred) == (("a", "b", "c", "d", "e"), 2)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "Hi", "completions": []}, "completions"),
        ({"prompt": "Hi", "completions": ["a", ""]}, "completions[1]"),
        ({"prompt": "Hi", "completions": ["a", 3]}, "completions[1]"),
        ({"completions": ["a", "b"]}, "prompt"),
        ({"prompt": "Hi", "chosen": ["a"], "rejected": ["b", " "]}, "rejected[1]"),
        ({"prompt": "Hi"}, "chosen"),
    ],
)
def test_what_is_wrong_is_named(row: Any, field: str) -> None:
    with pytest.raises(RowError) as raised:
        parse_candidates(row, AT)
    assert raised.value.where == AT and str(raised.value.field or "chosen").startswith(field)
