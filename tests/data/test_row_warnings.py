"""Warnings about rows, and that every row is used or counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_dpo.data.data_check import DataCheck
from mlx_dpo.data.files.json_lines import has_duplicate_keys
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import RowError, Where
from tests.data.test_rows_as_written import AT, OK, REFUSED, ROWS, SINGLES, SYSTEM, assistant, user
from tests.data.test_tool_rows import CITY, call_row, tool


def warnings(row: Any) -> dict[str, tuple[str, ...]]:
    return {warning.kind.key: warning.names for example in parse_examples(row, AT) for warning in example.warnings}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (OK, {}),
        ({**OK, "chosen": "B."}, {"equal_completions": ()}),
        ({"chosen": "Why so? One.", "rejected": "Why so? Two."}, {"implicit_text": ()}),
        ({**OK, "id": 1, "source": "web", "output": "A.", "n": None}, {"unused_columns": ("source", "output")}),
        ({**OK, "prompt": [SYSTEM, user("q")], "system": "T"}, {"system_ignored": ()}),
        ({**OK, "prompt": [SYSTEM, user("q")], "system": "S"}, {}),
        ({**OK, "prompt": "Why so?", "chosen": "Why so? A."}, {"prompt_repeated": ()}),
        ({**OK, "prompt": "Why so?", "chosen": [user("Why so?"), assistant("A.")], "rejected": "B."}, None),
        ({**OK, "prompt": [user("Why so?")], "rejected": "Why so?\nB."}, {"prompt_repeated": ()}),
        ({**OK, "prompt": "Magnet", "chosen": "Magnets pull."}, {}),
        ({**OK, "rejected": "\u200b\ufeff"}, {"invisible_completion": ()}),
        ({**OK, "prompt": [user("q")], "rejected": [assistant("\u200b \u2060")]}, {"invisible_completion": ()}),
        (call_row({"y": None}, {"x": 1}, [tool("f", city=CITY)]), {"table_nulls": ()}),
        ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 2], "models": "m"}, {"unused_columns": ("models",)}),
        ({"prompt": "q", "completion": "a", "label": True, "note": "n"}, {"unused_columns": ("note",)}),
        ({"messages": [user("q"), assistant("A.")], "rejected": "B.", "note": "n"}, {"unused_columns": ("note",)}),
        ({"instruction": "q", "input": "i", "chosen": "A.", "rejected": "B."}, {}),
    ],
)
def test_warnings(row: Any, expected: dict[str, tuple[str, ...]] | None) -> None:
    if expected is None:
        with pytest.raises(RowError):
            warnings(row)
    else:
        assert warnings(row) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "q", "chosen": "A.", "rejected": "B.", "chosen": "C."}', True),
        ('{"prompt": "q", "chosen" : "A.", "rejected": "B.", "chosen"  : "C."}', True),
        ('{"prompt": [{"role": "user", "content": "q", "content": "r"}], "chosen": "A.", "rejected": "B."}', True),
        ('{"prompt": "a \\":b\\":", "chosen": "\\\\\\": {}", "rejected": "\\":"}', False),
        ('{"prompt\\\\": "q", "chosen": "A.", "rejected": "B."}', False),
        ("[1, {}]", False),
        ("7", False),
    ],
)
def test_duplicate_keys(line: str, expected: bool) -> None:
    assert has_duplicate_keys(line.encode(), json.loads(line)) is expected


@settings(deadline=None, derandomize=True)
@given(
    st.recursive(
        st.text('"\\:{}, a') | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\: ab', max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([(", ", ": "), (",", ":"), (" , ", " : ")]),
)
def test_what_has_no_duplicate_keys_is_not_said_to_have_any(value: Any, separators: tuple[str, str]) -> None:
    assert not has_duplicate_keys(json.dumps(value, separators=separators).encode(), value)


def test_data_check_counts_warnings(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [
        '{"prompt": "q", "chosen": "A.", "rejected": "B.", "rejected": "C."}',
        json.dumps({**OK, "source": "web"}),
        json.dumps({**OK, "note": "n"}),
        json.dumps({**OK, "chosen": "B."}),
    ]
    file.write_text("\n".join(lines))
    check = DataCheck()
    check.add_file(str(file))
    counted = check.to_json()["warnings"]
    assert {key: value["count"] for key, value in counted.items()} == {
        "duplicate_keys": 1,
        "unused_columns": 2,
        "equal_completions": 1,
    }
    assert counted["unused_columns"]["columns"] == {"source": 1, "note": 1}
    assert [where["line"] for where in counted["unused_columns"]["first"]] == [2, 3]
    sentence = check.warnings.sentences()[1]
    assert sentence.startswith("2 rows: text columns are not used: source, note (first lines: 2, 3). If")


KEYS = ("prompt", "chosen", "rejected", "completions", "scores", "messages", "conversations", "label", "completion")
KEYS += ("system", "history", "rejected_response", "response", "instruction", "input", "tools", "options", "accept")
KEYS += ("data", "annotations", "fields", "responses", "generations", "ratings", "images", "answer", "response1")
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab \u200b", max_size=4) | st.sampled_from(["[", "[1]"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from((*KEYS, "role", "content", "from", "value", "id", "text")), inner, max_size=3)
    ),
    max_leaves=10,
)
some_row = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)
good_row = st.sampled_from([row for row, _ in (*ROWS.values(), *SINGLES.values())] + [r for r, *_ in REFUSED.values()])


@settings(deadline=None, derandomize=True, max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.lists(some_row | good_row | st.builds(dict.__or__, good_row, some_row), min_size=1, max_size=4))
def test_every_row_is_an_example_or_counted(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "counted.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = DataCheck()
    check.add_file(str(file))
    used: list[int] = []
    for number, row in enumerate(rows, 1):
        try:
            examples = parse_examples(row, Where("x", number))
        except RowError:
            continue
        used += [number] * bool(examples)
    report = check.to_json()
    assert report["rows"] == len(rows)
    named = report["problems"] + report["rows_without_pairs"]["count"]
    mixed = report["problem_kinds"].get("mixed", 0)  # of another kind than the first: counted among the problems
    assert len(used) - mixed + named == len(rows)
    assert sum(report["shapes"].values()) == len(rows) - report["problems"]
