"""Exports of annotation tools, as their documentation shows them."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_dpo.data.examples import Pair
from mlx_dpo.data.row_parsing import parse_pairs, row_format_label
from mlx_dpo.errors import RowError, Where

AT = Where("export.json", 2)
PAIR, REVERSED = Pair("q", "A.", "B."), Pair("q", "B.", "A.")


def selected(side: str, to_name: str = "answer1,answer2", **more: Any) -> dict[str, Any]:
    result = {
        **{"id": "Dx_aB91ISN", "from_name": "pw", "to_name": to_name, "type": "pairwise"},
        "value": {"selected": side},
    }
    return {"id": 1001, "completed_by": 10, "result": [result], "was_cancelled": False, "lead_time": 4.2, **more}


def task(*annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    fields = {"prompt": "q", "answer1": "A.", "answer2": "B.", **data}
    return {"id": 1, "data": fields, "annotations": list(annotations), "predictions": [], "project": 83}


def record(responses: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        **{"id": "r-1", "_server_id": "0f", "metadata": {}, "vectors": {}, "suggestions": {"preference": "response2"}},
        "fields": {"instruction": "q", "response1": "A.", "response2": "B.", **fields},
        "responses": responses,
    }


def response(value: Any, **more: Any) -> dict[str, Any]:
    return {"value": value, "user_id": "u", **more}


OPTIONS = [{"id": 0, "text": "A."}, {"id": 1, "text": "B."}]
CHOICE = {"text": "q", "options": OPTIONS, "accept": [0], "answer": "accept", "_input_hash": 1, "_view_id": "choice"}
COMPARE = {
    **{"id": 1, "input": {"text": "q"}, "accept": {"text": "A."}, "reject": {"text": "B."}},
    **{"mapping": {"A": "accept", "B": "reject"}, "answer": "accept"},
}

EXPORTS: dict[str, tuple[dict[str, Any], str, list[Pair]]] = {
    "Label Studio, left": (task(selected("left")), "Label Studio", [PAIR]),
    "Label Studio, right": (task(selected("right")), "Label Studio", [REVERSED]),
    "Label Studio, other order": (task(selected("left", "answer2,answer1")), "Label Studio", [REVERSED]),
    "Label Studio, names of the configuration": (task(selected("left", "txt-1,txt-2")), "Label Studio", [PAIR]),
    "Label Studio, a majority": (task(*map(selected, ("left", "right", "left"))), "Label Studio", [PAIR]),
    "Label Studio, no majority": (task(selected("left"), selected("right")), "Label Studio", []),
    "Label Studio, cancelled": (
        task(selected("right", was_cancelled=True), selected("left")),
        "Label Studio",
        [PAIR],
    ),
    "Label Studio, not annotated": (task(), "Label Studio", []),
    "Argilla, a label": (record({"preference": [response("response1")]}), "Argilla", [PAIR]),
    "Argilla, written otherwise": (record({"preference": [response("Response 2")]}), "Argilla", [REVERSED]),
    "Argilla, a ranking": (record({"ranking": [response(["response2", "response1"])]}), "Argilla", [REVERSED]),
    "Argilla, ranks": (
        record({"ranking": [response([{"value": "response2", "rank": 2}, {"value": "response1", "rank": 1}])]}),
        "Argilla",
        [PAIR],
    ),
    "Argilla, ranks that tie": (
        record({"ranking": [response([{"value": "response2", "rank": 1}, {"value": "response1", "rank": 1}])]}),
        "Argilla",
        [],
    ),
    "Argilla, a tie": (record({"preference": [response("tie")]}), "Argilla", []),
    "Argilla, discarded": (record({"preference": [response("response2", status="discarded")]}), "Argilla", []),
    "Argilla, suggestions alone": (record({}), "Argilla", []),
    "Argilla, with its input": (
        record({"preference": [response("response1")]}, input="i", context="c"),
        "Argilla",
        [Pair("q\ni", "A.", "B.")],
    ),
    "Prodigy": (CHOICE, "Prodigy, choice", [PAIR]),
    "Prodigy, the second": ({**CHOICE, "accept": [1]}, "Prodigy, choice", [REVERSED]),
    "Prodigy, none": ({**CHOICE, "accept": []}, "Prodigy, choice", []),
    "Prodigy, all": ({**CHOICE, "accept": [0, 1]}, "Prodigy, choice", []),
    "Prodigy, ignored": ({**CHOICE, "answer": "ignore"}, "Prodigy, choice", []),
    "Prodigy, of three": (
        {**CHOICE, "options": [*OPTIONS, {"id": 2, "text": "C."}]},
        "Prodigy, choice",
        [PAIR, Pair("q", "A.", "C.")],
    ),
    "Prodigy's comparison": (COMPARE, "Prodigy, compare", [PAIR]),
    "Prodigy's comparison, the other": ({**COMPARE, "answer": "reject"}, "Prodigy, compare", [REVERSED]),
    "Prodigy's comparison, ignored": ({**COMPARE, "answer": "ignore"}, "Prodigy, compare", []),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export(name: str) -> None:
    row, label, pairs = EXPORTS[name]
    assert parse_pairs(row, AT) == pairs
    assert row_format_label(row) == label


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (task(selected("left", "a,b"), answer3="C."), "which two are compared is not clear: answer1, answer2, answer3"),
        (task(selected("left"), prompt=""), "`data`: there is no prompt in it"),
        (record({"preference": [response("model_a")]}), r"`responses\.preference`: .*none of the answers: response1"),
        (record({"preference": [response(["response1", "x"])]}), "names none of the answers"),
        ({**CHOICE, "accept": 0}, "`accept`: must be a list"),
        ({**CHOICE, "text": None}, "`options`: there is no prompt"),
        ({**CHOICE, "options": [{"id": 0, "image": "a.jpg"}]}, r"`options\[0\]\.text`: is missing"),
        ({**COMPARE, "input": {"html": "q"}}, r"`input\.text`: is missing"),
    ],
)
def test_an_export_that_is_not_clear(row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message) as raised:
        parse_pairs(row, AT)
    assert raised.value.where == AT
