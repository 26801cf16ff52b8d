"""The well-known preference sets, a row of each as its card on the Hub shows it, and columns under other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.data import formats
from mlx_dpo.data.column_mapping import with_renamed_columns
from mlx_dpo.data.formats import find_row_format
from mlx_dpo.data.formats.public_dataset import PublicDataset
from mlx_dpo.data.row_parsing import parse_pairs, row_format_label
from mlx_dpo.errors import RowError, Where

QUESTION_PAIR = """
from mlx_dpo.data.formats.row_format import PairFormat

class QuestionPair(PairFormat):
    def matches(self, row):
        return "question_of_pair" in row

    def label(self, row):
        return "question pair"
"""
WHERE = Where("x.jsonl", 3)
USER = {"role": "user", "content": "How do I boil an egg?"}
GOOD, BAD = "Seven minutes in boiling water.", "Figure it out."


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SHP = {
    **{"post_id": "qt3nxl", "domain": "askculinary_train", "upvote_ratio": 0.98, "history": USER["content"]},
    **{"c_root_id_A": "hkh25sc", "c_root_id_B": "hkh25lp", "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0},
    **{"score_A": 2, "score_B": 9, "seconds_difference": 3.0, "score_ratio": 4.5},
}
PKU = {
    **{"prompt": USER["content"], "response_0": BAD, "response_1": GOOD, "prompt_source": "Alpaca3-70B"},
    **{"is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 0},
    **{"response_0_severity_level": 0, "response_1_severity_level": 0},
}
HELPSTEER2 = {
    **{"split": "train", "prompt": USER["content"], "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
    **{"preference_statement": "@Response 1 is better than @Response 2.", "preference_elaboration": "It helps."},
}
HELPSTEER3 = {
    **{"domain": "general", "language": "english", "context": [USER], "response1": GOOD, "response2": BAD},
    **{"overall_preference": -1, "individual_preference": [{"score": -1, "reasoning": "..."}]},
}
ORCA = {"system": "Be brief.", "question": USER["content"], "chosen": GOOD, "rejected": BAD}
ULTRAFEEDBACK_BINARIZED = {
    **{"prompt": USER["content"], "prompt_id": "f0e3", "chosen": [USER, assistant(GOOD)]},
    **{"rejected": [USER, assistant(BAD)], "messages": [USER, assistant(GOOD)]},
    **{"score_chosen": 8.5, "score_rejected": 3.0},
}
HH = {
    "chosen": f"\n\nHuman: {USER['content']}\n\nAssistant: {GOOD}",
    "rejected": f"\n\nHuman: {USER['content']}\n\nAssistant: {BAD}",
}
TEXTS = (USER["content"], GOOD, BAD)
TURNS = ([USER], [assistant(GOOD)], [assistant(BAD)])
SETS: dict[str, tuple[dict[str, Any], tuple[Any, Any, Any]]] = {
    "SHP": (SHP, TEXTS),
    "PKU-SafeRLHF": (PKU, TEXTS),
    "HelpSteer2": (HELPSTEER2, TEXTS),
    "HelpSteer3": (HELPSTEER3, TURNS),
    "orca_dpo_pairs": (ORCA, ([{"role": "system", "content": "Be brief."}, USER], *TURNS[1:])),
    "UltraFeedback binarized": (ULTRAFEEDBACK_BINARIZED, TURNS),
    "HH-RLHF": (HH, TURNS),
}


@pytest.mark.parametrize("name", SETS)
def test_set(name: str) -> None:
    row, expected = SETS[name]
    before = repr(row)
    (pair,) = parse_pairs(row, WHERE)
    assert (pair.prompt, pair.chosen, pair.rejected) == expected
    assert repr(row) == before and row_format_label(row) not in ("unknown", "prompt, completions, no scores")


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        (SHP, {"labels": 1}),
        (PKU, {"better_response_id": 0}),
        (HELPSTEER2, {"preference_strength": 3}),
        (HELPSTEER3, {"overall_preference": 1}),
    ],
)
def test_the_other_way_round(row: dict[str, Any], changes: dict[str, int]) -> None:
    (one,), (other,) = parse_pairs(row, WHERE), parse_pairs({**row, **changes}, WHERE)
    assert (one.prompt, one.chosen, one.rejected) == (other.prompt, other.rejected, other.chosen)


def test_a_tie_is_no_pair() -> None:
    assert parse_pairs({**HELPSTEER2, "preference_strength": 0}, WHERE) == []
    assert parse_pairs({**HELPSTEER3, "overall_preference": 0}, WHERE) == []


def test_nectar() -> None:
    answers = [{"answer": f"answer {i}", "model": "m", "rank": float(rank)} for i, rank in enumerate([2, 1, 3])]
    row = {
        **{"prompt": "\n\nHuman: Hi?\n\nAssistant: ", "answers": answers, "turns": 1, "num_responses": 3},
        **{"source": ["anthropic-hh"], "good_natured": True},
    }
    found = {(p.chosen[0]["content"], p.rejected[0]["content"]) for p in parse_pairs(row, WHERE)}  # type: ignore[index]
    assert found == {("answer 1", "answer 0"), ("answer 1", "answer 2"), ("answer 0", "answer 2")}
    assert all(p.prompt == [{"role": "user", "content": "Hi?"}] for p in parse_pairs(row, WHERE))


def test_ultrafeedback_itself() -> None:
    completions = [
        {"model": "a", "response": BAD, "overall_score": 3.0, "annotations": {}},
        {"model": "b", "response": GOOD, "overall_score": 8.0, "annotations": {}},
        {"model": "c", "response": "As good.", "overall_score": 8.0, "annotations": {}},
    ]
    row = {"source": "evol", "instruction": USER["content"], "models": ["a", "b", "c"], "completions": completions}
    assert [(p.chosen, p.rejected) for p in parse_pairs(row, WHERE)] == [(GOOD, BAD), ("As good.", BAD)]


@pytest.mark.parametrize(
    ("row", "field", "said"),
    [
        ({**SHP, "labels": 2}, "labels", "one of"),
        ({**SHP, "labels": True}, "labels", "one of"),
        ({**PKU, "better_response_id": "two"}, "better_response_id", "one of .* not text"),
        ({**HELPSTEER2, "preference_strength": 4}, "preference_strength", "one of"),
        ({**HELPSTEER3, "context": []}, "context", "empty"),
        ({"prompt": "q", "answers": [{"answer": "a"}], "num_responses": 1}, "answers[0].rank", "missing"),
        ({"prompt": "q", "answers": "a", "num_responses": 1}, "answers", "must be a list"),
        (
            {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 4, "coherence": 4, "verbosity": 2},
            None,
            "single answer",
        ),
    ],
)
def test_what_is_wrong_is_said(row: dict[str, Any], field: str | None, said: str) -> None:
    with pytest.raises(RowError, match=said) as raised:
        parse_pairs(row, WHERE)
    assert raised.value.where == WHERE
    assert field is None or raised.value.field in (field, "prompt")


@pytest.mark.parametrize("row", [{}, {"prompt": "q"}, {"labels": 1}, {"completions": ["a"]}])
def test_any_other_row_is_in_no_public_format(row: Any) -> None:
    assert not isinstance(find_row_format(row), PublicDataset)


def test_named_columns() -> None:
    columns = {"prompt": "task.question", "chosen": "winner", "rejected": "loser"}
    read = with_renamed_columns(columns, parse_pairs)
    row = {"task": {"question": "q"}, "winner": "a", "loser": "b", "system": "s", "prompt": "not this"}
    (pair,) = read(row, WHERE)
    assert pair.prompt == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert pair.chosen == [assistant("a")] and pair.rejected == [assistant("b")]
    (dotted,) = with_renamed_columns({"prompt": "a.b"}, parse_pairs)(
        {"a.b": "q", "chosen": "x", "rejected": "y"}, WHERE
    )
    assert dotted.prompt == "q"
    with pytest.raises(RowError, match=r"x\.jsonl:3: `loser`(?s:.*)Columns here: winner, task\.") as raised:
        read({"winner": "a", "task": {"question": "q"}}, WHERE)
    assert raised.value.where == WHERE
    with pytest.raises(RowError, match="must be a JSON object"):
        read([1], WHERE)
    assert with_renamed_columns({}, parse_pairs) is parse_pairs


def test_a_format_without_an_order_is_tried_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "question_pair.py").write_text(QUESTION_PAIR)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    assert type(formats.row_formats.__wrapped__()[-1]).__name__ == "QuestionPair"
