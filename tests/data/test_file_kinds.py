"""Tables are read like lines of JSON, and what is no file of rows is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.examples import Example, Pair
from mlx_dpo.data.files.hub_splits import find_splits
from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import RowError, UserError

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
ROWS = [{"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
PAIRS = [Pair(**row) for row in ROWS]


def read(file: Path, data: bytes, problems: list[RowError] | None = None) -> list[Example]:
    file.write_bytes(data)
    opened = ExampleFile.open(str(file), None if problems is None else problems.append, parse=parse_examples)
    return [opened[i] for i in range(len(opened))]


def table(rows: list[list[str]], delimiter: str) -> bytes:
    quoted = (delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    return ("\r\n".join(quoted) + "\r\n").encode()


CELLS = [["prompt", "chosen", "rejected", "label"], *[[*row.values(), ""] for row in ROWS]]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "\t")])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_table(tmp_path: Path, name: str, delimiter: str, bom: bytes) -> None:
    data = bom + table(CELLS, delimiter)
    assert read(tmp_path / name, data) == PAIRS
    assert read(tmp_path / f"{name}.gz", gzip.compress(data)) == PAIRS


def test_cells_of_a_table(tmp_path: Path) -> None:
    """Messages as JSON and as Python's repr, scores, tools, several lines, pandas' column of row numbers."""
    header = ["", "prompt", "chosen", "rejected", "score_chosen", "score_rejected", "tools", "system"]
    first = ["0", json.dumps([USER]), json.dumps([GOOD]), repr([BAD]), "8.5", "3", '[{"name": "f"}]', ""]
    second = ["1", 'He said "q",\nright?', "a\n\nb", "b", "", "", "", "Be brief."]
    examples = read(tmp_path / "a.csv", table([header, first, second], ","))
    assert examples[0] == Pair([USER], [GOOD], [BAD], [{"name": "f"}])
    assert isinstance(examples[0], Pair) and examples[0].scores == (8.5, 3)
    assert examples[1].prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'He said "q",\nright?'},
    ]


def test_labels_of_a_table(tmp_path: Path) -> None:
    rows = [["prompt", "completion", "label"], *[["q", "a", label] for label in ("True", "false", "1", "0", "1.0")]]
    labels = [getattr(example, "desirable", None) for example in read(tmp_path / "a.csv", table(rows, ","))]
    assert labels == [True, False, True, False, True]


def test_a_bad_row_of_a_table_is_the_only_one_lost(tmp_path: Path) -> None:
    data = b'prompt,chosen,rejected\nq 0,good 0,bad 0\nq,"a"b,c\n\nq,a,b,c\nq,\xff,b\nq 1,"good\n1",bad 1\nq,,b\n'
    problems: list[RowError] = []
    pairs = read(tmp_path / "a.csv", data, problems)
    assert [pair.prompt for pair in pairs] == ["q 0", "q 1"]
    assert [(error.where.line, error.kind) for error in problems if error.where] == [
        (3, "bad table"),
        (5, "bad table"),
        (6, "not UTF-8"),
        (9, "missing key"),
    ]
    assert "has 4 cells, where the header has 3" in problems[1].message


def test_a_column_named_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names a column twice: prompt"):
        read(tmp_path / "a.csv", b"prompt,chosen,rejected,prompt\n1,2,3,4\n")


KINDS = {
    "csv": ("a.jsonl", table(CELLS, ","), "is a table, not lines of JSON: rename it to .csv"),
    "tsv": ("a.json", table(CELLS, "\t"), "rename it to .tsv"),
    "plain csv": ("a.jsonl", b"prompt,chosen,rejected\nq,a,b\n", "rename it to .csv"),
    "html": ("a.jsonl", b"\n<!DOCTYPE html>\n<html><head></head></html>", "is an HTML page"),
    "html, no doctype": ("a.jsonl", b'<html lang="en">', "is an HTML page"),
    "html named csv": ("a.csv", b"<html>", "is an HTML page"),
    "lfs": ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4\nsize 9\n", "pointer of Git LFS"),
    "lfs csv": ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:4\nsize 9\n", "pointer of Git LFS"),
    "zip": ("a.jsonl", b"PK\x03\x04rest", "is a zip archive"),
    "zstd": ("a.jsonl", b"\x28\xb5\x2f\xfdrest", "compressed by zstd"),
    "utf-16": ("a.csv", table(CELLS, ",").decode().encode("utf-16"), "UTF-16"),
    "jsonl named csv": ("a.csv", json.dumps(ROWS[0]).encode(), "holds JSON objects, not a table"),
    "columns": ("a.json", json.dumps({k: [r[k] for r in ROWS] for k in ROWS[0]}).encode(), "one object of columns"),
    "pandas' columns": (
        "a.json",
        json.dumps({k: {str(i): r[k] for i, r in enumerate(ROWS)} for k in ROWS[0]}).encode(),
        "one object of columns",
    ),
    "columns without a prompt": (
        "a.json",
        json.dumps({k: [r[k] for r in ROWS] for k in ("chosen", "rejected")}).encode(),
        "one object of columns",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_file_of_rows_is_named(name: str, tmp_path: Path) -> None:
    file, data, message = KINDS[name]
    with pytest.raises(UserError, match=message):
        read(tmp_path / file, data)


def indented(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


WHOLE = {
    "data": json.dumps({"data": ROWS}).encode(),
    "data, indented": indented({"data": ROWS}),
    "among others": json.dumps({"version": "1", "n": 3, "data": ROWS, "info": {"x": [1]}, "end": None}).encode(),
    "rows": b"\xef\xbb\xbf" + indented({"é": "ü", "rows": ROWS}),
    "train": json.dumps({"train": ROWS}).encode(),
    "indented objects": b"\n".join(map(indented, ROWS)),
    "lines": b"".join(json.dumps(row).encode() + b"\n" for row in ROWS),
}


@pytest.mark.parametrize("name", WHOLE)
def test_objects_around_and_over_lines(name: str, tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", WHOLE[name]) == PAIRS
    assert read(tmp_path / "a.json.gz", gzip.compress(WHOLE[name])) == PAIRS


def test_one_indented_object_is_a_row(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", indented(ROWS[0])) == PAIRS[:1]


def test_a_row_whose_first_column_is_called_data(tmp_path: Path) -> None:
    row = {"data": [USER], **ROWS[0]}
    assert read(tmp_path / "a.jsonl", json.dumps(row).encode()) == PAIRS[:1]


def test_parquet_leaves_out_the_nulls_it_made(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    properties = [{"city": {"type": "string"}}, {"x": {"type": "number", "enum": [1, None]}}]
    tools = [{"name": f"f{i}", "parameters": {"properties": p}} for i, p in enumerate(properties)]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f1", "arguments": {"x": 1}}]}
    rows = [
        {"prompt": [USER], "chosen": [call], "rejected": [BAD], "tools": tools},
        {
            **{"prompt": [USER], "chosen": [BAD], "rejected": [BAD], "tools": tools},
            "chosen": [{**call, "tool_calls": [{"name": "f0", "arguments": {"city": "Rome"}}]}],
        },
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    opened = ExampleFile.open(str(tmp_path / "a.parquet"))
    assert [opened[i] for i in range(2)] == [Pair(row["prompt"], row["chosen"], row["rejected"], tools) for row in rows]
    (tmp_path / "a.parquet").rename(tmp_path / "a.jsonl")
    assert len(ExampleFile.open(str(tmp_path / "a.jsonl"))) == 2


def test_a_null_of_parquet_is_left_out_though_nothing_in_its_row_shows_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    answers = [
        [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": arguments}]}]
        for arguments in ({"x": 1}, {"y": 2})
    ]
    rows = [{"prompt": "q", "chosen": answer, "rejected": [BAD]} for answer in answers]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    opened = ExampleFile.open(str(tmp_path / "a.parquet"))
    assert [opened[i].completions[0] for i in range(2)] == answers


def test_tables_of_a_hub_repository_are_read_where_there_is_nothing_else() -> None:
    assert find_splits(["train.csv", "test.csv"], {})[0][1].files == ("train.csv",)
    assert [split.files for split in find_splits(["train.jsonl", "metadata.csv"], {})[0]] == [("train.jsonl",)]
