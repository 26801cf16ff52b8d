"""The data view's requests: rows listed, changed, undone, imported and exported."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from mlx_dpo.data.example_file import ExampleFile
from mlx_dpo.data.row_parsing import parse_labelled_examples, parse_pairs
from mlx_dpo.errors import UserError
from mlx_dpo.web.row_routes import RowRoutes
from mlx_dpo.web.verdicts import VerdictFiles

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]
ROWS = [
    {"prompt": "Name a fruit", "chosen": "Apple", "rejected": "Stone", "labeller": "ana", "id": "1"},
    {"prompt": "Name a colour", "chosen": "Blue", "rejected": "Seven", "edited": True, "labeller": "ben"},
    {"prompt": "Name a fruit", "chosen": "Stone", "rejected": "Apple", "labeller": "ana"},
    {"prompt": "Same", "chosen": "x", "rejected": "x"},
    {"prompt": CHAT, "chosen": [{"role": "assistant", "content": "A"}], "rejected": [CHAT[1]]},
    {"prompt": "Tie", "completions": ["a", "b"], "scores": [0, 0]},
]
LABEL = {"prompt": "Name a fruit", "completion": "Stone", "label": False}


class Rows:
    """The requests that a page makes, on files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.labels = folder / "pairs.jsonl", folder / "pairs.labels.jsonl"
        routes = RowRoutes(VerdictFiles(self.path)).routes()

        async def explain(request: Any, error: Exception) -> JSONResponse:
            return JSONResponse({"message": str(error)}, 400)

        self.client = TestClient(Starlette(routes=routes, exception_handlers={UserError: explain}))

    def write(self, *rows: Any) -> bytes:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        self.path.write_text("".join(f"{line}\n" for line in lines))
        return self.path.read_bytes()

    def list(self, **query: Any) -> list[dict[str, Any]]:
        return self.get("/api/rows", **query)["rows"]

    def get(self, path: str, **query: Any) -> Any:
        response = self.client.get(path, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, action: str, status: int = 200, **body: Any) -> Any:
        response = self.client.post(f"/api/rows/{action}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    def upload(self, content: bytes, name: str = "", status: int = 200) -> Any:
        response = self.client.post("/api/rows/import", params={"name": name}, content=content)
        assert response.status_code == status, response.text
        return response.json()


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    yield Rows(tmp_path)


def lines_of(listed: list[dict[str, Any]]) -> list[int]:
    return [row["line"] for row in listed]


def address(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("file", "line", "digest")}


def test_filters(rows: Rows) -> None:
    rows.write(*ROWS, "", "no JSON")
    rows.labels.write_text(json.dumps(LABEL) + "\n")
    assert lines_of(rows.list()) == [1, 2, 3, 4, 5, 6, 8, 1]
    assert [row["kind"] for row in rows.list()] == ["preference"] * 5 + ["tie", "broken", "label"]
    assert lines_of(rows.list(search="FRUIT name")) == [1, 3, 1]
    assert lines_of(rows.list(search="yes?")) == [5]
    assert lines_of(rows.list(kind="tie")) == [6]
    assert [row["file"] for row in rows.list(kind="label")] == ["labels"]
    assert lines_of(rows.list(labeller="ana", search="stone")) == [1, 3]
    assert lines_of(rows.list(edited="1")) == [2]
    assert lines_of(rows.list(duplicate="1")) == [1, 3]
    assert lines_of(rows.list(warned="1")) == [4, 8]
    assert lines_of(rows.list(start=2, count=2)) == [3, 4]
    assert rows.client.get("/api/rows", params={"kind": "best"}).status_code == 400
    assert rows.client.get("/api/rows", params={"start": "-1"}).status_code == 400


def test_warnings_stand_at_their_rows(rows: Rows) -> None:
    rows.write(*ROWS, "no JSON", LABEL)
    listed = rows.list()
    assert listed[3]["warnings"] == [
        "Chosen and rejected are equal. Nothing can be learned from them: `mlx-dpo data fix` leaves them out."
    ]
    assert listed[6]["warnings"][0].startswith("not valid JSON")
    assert "the first row of this file is a pair" in listed[7]["warnings"][0]
    assert listed[0]["warnings"] == []  # `id` and `labeller` are no columns that training misses


def test_summary(rows: Rows) -> None:
    assert rows.get("/api/rows/summary")["agreement"] is None
    again = {"prompt": [{"role": "user", "content": "Name a colour"}], "chosen": "Blue", "rejected": "Seven"}
    other = {**ROWS[0], "labeller": "ben", "chosen": "Stone", "rejected": "Apple"}  # of another person: no repeat
    rows.write(*ROWS, {**again, "labeller": "ben"}, other)
    summary = rows.get("/api/rows/summary")
    assert summary["kinds"] == {"preference": 7, "tie": 1, "label": 0, "broken": 0}
    assert summary["labellers"] == {"ben": 3, "ana": 2}
    assert (summary["edited"], summary["warned"], summary["duplicates"]) == (1, 1, 5)
    agreement = summary["agreement"]
    assert (agreement["compared"], agreement["same"], agreement["share"]) == (2, 1, 0.5)
    low, high = agreement["interval"]
    assert 0 < low < 0.2 and 0.8 < high < 1


def test_a_changed_file_is_read_again(rows: Rows) -> None:
    rows.write(ROWS[0])
    version = rows.get("/api/rows")["version"]
    assert rows.get("/api/rows")["version"] == version
    with rows.path.open("a") as stream:
        stream.write(json.dumps(ROWS[1]) + "\n")
    assert lines_of(rows.list()) == [1, 2] and rows.get("/api/rows")["version"] > version
    rows.path.unlink()
    assert rows.list() == []


def edit(row: dict[str, Any], **fields: str) -> dict[str, Any]:
    return {"row": address(row), "fields": {name: {"text": text, "is_json": False} for name, text in fields.items()}}


def test_edit_and_undo(rows: Rows) -> None:
    strange = '{"prompt":"p",   "chosen":"é", "rejected":"\\u00e9x"}\r'
    before = rows.write(ROWS[0], strange, "no JSON")
    row = rows.list()[0]
    shown = rows.get("/api/rows/row", **address(row))
    assert [field["name"] for field in shown["fields"]] == ["prompt", "chosen", "rejected"] and shown["can_swap"]
    result = rows.post("edit", **edit(row, chosen="Pear é"))
    assert [json.loads(line) for line in rows.path.read_bytes().splitlines()[:1]] == [
        {**ROWS[0], "chosen": "Pear é", "edited": True}
    ]
    assert rows.path.read_bytes().split(b"\n")[1:] == before.split(b"\n")[1:]
    assert result["row"] == address(rows.list()[0])
    rows.post("undo", id=result["undo"])
    assert rows.path.read_bytes() == before
    assert "can't be undone" in rows.post("undo", 400, id=result["undo"])["message"]


def test_a_prompt_becomes_messages(rows: Rows) -> None:
    rows.write(ROWS[0])
    fields = {"prompt": {"text": json.dumps(CHAT), "is_json": True}}
    rows.post("edit", row=address(rows.list()[0]), fields=fields)
    assert json.loads(rows.path.read_text())["prompt"] == CHAT
    (row,) = rows.list()
    assert row["prompt"] == "user: Hi\nassistant: Yes?\nuser: Go"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen": {"text": " "}}, "is empty"),
        ({"prompt": {"text": "[{", "is_json": True}}, "is not JSON"),
        ({"prompt": {"text": "[" * 100_000, "is_json": True}}, "nested too deep"),
        ({"prompt": {"text": "[1]", "is_json": True}}, "prompt"),
        ({"id": {"text": "2"}}, "is not a field"),
        ({"row": {"text": "[]", "is_json": True}}, "must be a JSON object"),
        ({"chosen": "text"}, "must have a text"),
        ([], "must be an object"),
    ],
)
def test_refused_edits(rows: Rows, fields: Any, message: str) -> None:
    before = rows.write(*ROWS)
    assert message in rows.post("edit", 400, row=address(rows.list()[0]), fields=fields)["message"]
    assert rows.path.read_bytes() == before


def test_an_edit_that_raced_is_refused(rows: Rows) -> None:
    rows.write(*ROWS)
    first, second = rows.list()[:2]
    rows.post("edit", **edit(first, chosen="Pear"))
    before = rows.path.read_bytes()
    for action in ("edit", "swap", "delete"):
        body = edit(first, chosen="Plum") if action == "edit" else {"row": address(first)}
        assert "changed or deleted meanwhile" in rows.post(action, 400, **body)["message"]
    assert rows.path.read_bytes() == before
    rows.post("delete", row=address(rows.list()[0]))  # the second row is on another line now, and is still found
    rows.post("edit", **edit(second, chosen="Red"))
    assert json.loads(rows.path.read_text().splitlines()[0])["chosen"] == "Red"


def test_a_change_by_another_program_while_the_file_is_written(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.write(*ROWS)
    row, write = rows.list()[0], Path.write_bytes

    def append_meanwhile(path: Path, content: bytes) -> int:
        monkeypatch.setattr(Path, "write_bytes", write)
        with rows.path.open("a") as stream:
            stream.write(json.dumps({**ROWS[0], "prompt": "new"}) + "\n")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", append_meanwhile)
    rows.post("delete", row=address(row))
    written = list(map(json.loads, rows.path.read_text().splitlines()))
    assert written == [*ROWS[1:], {**ROWS[0], "prompt": "new"}]


def test_delete_and_undo(rows: Rows) -> None:
    before = rows.write(*ROWS).removesuffix(b"\n")
    rows.path.write_bytes(before)  # a last line without an end
    undo = [rows.post("delete", row=address(rows.list()[i]))["undo"] for i in (5, 0)]
    assert rows.path.read_bytes() == b"\n".join(before.split(b"\n")[1:-1]) + b"\n"
    for change in reversed(undo):
        rows.post("undo", id=change)
    assert rows.path.read_bytes() == before


def test_swap(rows: Rows) -> None:
    scored = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1}
    rows.write(scored, ROWS[5], {**scored, "rejected": ["b", "c"]})
    rows.labels.write_text(json.dumps(LABEL) + "\n")
    listed = rows.list()
    rows.post("swap", row=address(listed[0]))
    rows.post("swap", row=address(listed[3]))
    swapped = json.loads(rows.path.read_text().splitlines()[0])
    assert swapped == {"prompt": "p", "chosen": "b", "rejected": "a", "score_chosen": 1, "score_rejected": 2}
    assert json.loads(rows.labels.read_text()) == {**LABEL, "label": True}
    assert [rows.get("/api/rows/row", **address(row))["can_swap"] for row in rows.list()] == [True, False, False, True]
    rows.post("swap", 400, row=address(listed[1]))


def test_import(rows: Rows) -> None:
    before = rows.write(ROWS[0])
    good = [ROWS[1], {"conversations": [{"from": "human", "value": "Q"}], "chosen": "A", "rejected": "B"}, LABEL]
    text = "\n".join([json.dumps(good[0]), "{", json.dumps(good[1]), '{"prompt": "p"}', json.dumps(good[2]), "[1]"])
    result = rows.upload(text.encode(), "<b>other</b>.jsonl")
    assert result["added"] == {"preferences": 2, "labels": 1} and result["num_bad"] == 3
    assert [problem["line"] for problem in result["problems"]] == [2, 4, 6]
    assert result["problems"][0]["message"].startswith("not valid JSON")
    assert list(map(json.loads, rows.path.read_text().splitlines())) == [ROWS[0], *good[:2]]
    assert json.loads(rows.labels.read_text()) == LABEL
    rows.post("undo", id=result["undo"])
    assert rows.path.read_bytes() == before and rows.labels.read_bytes() == b""


def table(delimiter: str) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows([["prompt", "chosen", "rejected"], ["a\nb", "c", "d"]])
    return stream.getvalue().encode()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (table(","), "rows.csv"),
        (table(","), ""),
        (table("\t"), ""),
        (json.dumps([{"prompt": "a\nb", "chosen": "c", "rejected": "d"}], indent=2).encode(), ""),
        (json.dumps([{"prompt": "a\nb", "chosen": "c", "rejected": "d"}]).encode(), "../../rows.json"),
    ],
)
def test_import_of_other_files(rows: Rows, content: bytes, name: str) -> None:
    result = rows.upload(content, name)
    assert result["added"]["preferences"] == 1 and result["problems"] == []
    assert json.loads(rows.path.read_text()) == {"prompt": "a\nb", "chosen": "c", "rejected": "d"}


@pytest.mark.parametrize(("content", "name"), [(b"PK\x03\x04", "a.zip"), (b"<html>", ""), (b"a", "x.gz")])
def test_what_is_no_file_of_rows(rows: Rows, content: bytes, name: str) -> None:
    assert name in rows.upload(content, name, status=400)["message"]
    assert not rows.path.exists()


def test_export(rows: Rows) -> None:
    before = rows.write('{"prompt":"p",  "chosen": "c", "rejected": "r"}', *ROWS)
    rows.labels.write_text(json.dumps(LABEL) + "\n")
    response = rows.client.get("/api/rows/export/labels")
    assert response.headers["content-disposition"] == 'attachment; filename="pairs.exported.labels.jsonl"'
    assert response.text == json.dumps(LABEL) + "\n"
    assert rows.client.get("/api/rows/export/pairs").content == before
    assert rows.client.get("/api/rows/export/pairs", params={"search": "colour"}).text == json.dumps(ROWS[1]) + "\n"
    assert rows.client.get("/api/rows/export/pairs", params={"kind": "label"}).text == ""
    assert "`examples`: must be one of pairs, labels" in rows.client.get("/api/rows/export/all").json()["message"]


def test_train_reads_what_is_exported(rows: Rows) -> None:
    """Each export is rows of one sort, whatever is in the files."""
    rows.write(*ROWS, "no JSON", LABEL)
    rows.labels.write_text(json.dumps(LABEL) + "\n" + json.dumps(ROWS[0]) + "\n")
    file = rows.path.with_name("exported.jsonl")
    num_pairs = len(ROWS) - 1 + 1  # none of the tie, one in the other file
    for examples, parse, number in (("pairs", parse_pairs, num_pairs), ("labels", parse_labelled_examples, 2)):
        file.write_bytes(rows.client.get(f"/api/rows/export/{examples}").content)
        assert len(ExampleFile.open(str(file), parse=parse)) == number


def test_half_a_surrogate_pair_is_shown(rows: Rows) -> None:
    rows.write('{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}', '{"prompt": "p", "completions": "\\ud83d"}')
    listed = rows.list()
    assert [row["kind"] for row in listed] == ["broken", "broken"]
    assert "surrogate" in listed[0]["warnings"][0]
    assert rows.get("/api/rows/row", **address(listed[0]))["fields"][0]["text"] == "\ud83d"


def test_a_filter_of_ten_thousand_rows_is_fast(rows: Rows) -> None:
    rows.write(*({**ROWS[i % 2], "prompt": f"Question {i} " + "word " * 60} for i in range(10_000)))
    rows.list()
    times = []
    for word in ("9", "99", "question 77", "no such text"):
        start = time.perf_counter()
        rows.list(search=word, kind="preference")
        times.append(time.perf_counter() - start)
    with rows.path.open("a") as stream:
        stream.write(json.dumps(ROWS[0]) + "\n")
    start = time.perf_counter()
    rows.list(search="9")
    times.append(time.perf_counter() - start)
    assert min(times[:4]) < 0.1 and times[4] < 0.3
