"""A file that several people judge blind: what the page gets, what is written, and that `label --merge` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mlx_dpo.data.row_parsing import parse_examples
from mlx_dpo.errors import UserError, Where
from mlx_dpo.labeling.verdict_merging import merge_verdicts
from mlx_dpo.web import review_page, review_progress
from mlx_dpo.web.review_file import default_output
from mlx_dpo.web.review_page import open_review_page

TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look_up", "arguments": {}}}]}


def turn(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


ROWS: list[Any] = [
    {"prompt": "Name a fruit", "chosen": "**Apple**", "rejected": "Stone", "score_chosen": 9, "score_rejected": 1},
    {"prompt": CHAT, "chosen": turn("A"), "rejected": turn("B")},
    {"prompt": CHAT, "chosen": [CALL], "rejected": turn("I don't know"), "tools": TOOLS},
    {"prompt": "Three", "completions": ["x", "y", "z"], "scores": [3, 2, 1]},
    {"chosen": [*CHAT, *turn("C")], "rejected": [*CHAT, *turn("D")]},
    {"prompt": "Sampled", "completions": [turn("e"), turn("f")], "finish_reasons": ["stop", "length"]},
    {"system": "Be kind.", "prompt": "Hello", "chosen": "Hello!", "rejected": "What?"},
    {"prompt": CHAT, "chosen": turn("G"), "rejected": [turn("H"), turn("I")]},
]
BAD: list[Any] = [
    "no JSON",
    {"prompt": "Single", "completion": "one"},
    {"prompt": "Same", "chosen": "x", "rejected": "x"},
]


class Reviewer:
    """A person with a page of their own."""

    def __init__(self, file: Path, labeller: str | None = "ana", repeat: float = 0, output: Path | None = None) -> None:
        page = open_review_page(str(file), output, labeller, repeat)
        assert page.review is not None
        self.keys = [comparison.key for comparison in page.review.progress.review.comparisons]
        self.output = page.verdicts.preferences.path
        self.client = TestClient(page.application())

    def get(self, path: str) -> Any:
        response = self.client.get(f"/api/review{path}")
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        response = self.client.post(f"/api/review/{path}", json=body)
        assert response.status_code == status, response.text
        return response.json()

    def next(self) -> dict[str, Any]:
        return dict(self.get("/next")["comparison"])

    def judge(self, shown: dict[str, Any], kind: str = "choice", index: int | None = 0, status: int = 200) -> Any:
        return self.post("verdicts", status, shown=shown["shown"], kind=kind, index=index)

    def number(self, shown: dict[str, Any]) -> int:
        """The number of a comparison in the file."""
        return self.keys.index(shown["shown"]["key"])

    def judge_all(self, *, tie: int | None = None, prefer: Any = min) -> list[dict[str, Any]]:
        """Prefer the answer whose HTML is the first of the alphabet, or the last, but for one tie."""
        judged = []
        while shown := self.get("/next")["comparison"]:
            html = [answer["html"] for answer in shown["answers"]]
            is_tie = self.number(shown) == tie
            self.judge(shown, "tie" if is_tie else "choice", None if is_tie else html.index(prefer(html)))
            judged.append(shown)
        return judged

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.read_text().splitlines()] if self.output.exists() else []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in [*ROWS, *BAD]))
    return path


def test_verdicts_of_two_people_are_merged(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    ana, ben = Reviewer(file, "ana"), Reviewer(file, "ben")
    assert ana.output == tmp_path / "pairs.ana.jsonl" and ana.get("")["comparisons"] == len(ROWS)
    assert (ana.get("")["bad"], ana.get("")["single"]) == (1, 2)
    assert ana.get("")["problem"].startswith(f"{file}:{len(ROWS) + 1}: not valid JSON")
    assert len(ana.judge_all(tie=1)) == len(ben.judge_all(tie=1)) == len(ROWS)
    assert file.read_bytes() == before
    for row in ana.rows():
        assert row["labeller"] == "ana" and bool(parse_examples(row, Where("ana"))) == ("chosen" in row)
    assert [row["tools"] for row in ana.rows() if "tools" in row] == [TOOLS]
    summary = merge_verdicts([str(ana.output), str(ben.output)], tmp_path / "merged.jsonl")
    # a pair each but for the rows of three, which make two, and the tie; all with two votes
    assert summary["comparisons"] == 10 and summary["pairs"] == 9 and summary["undecided"] == 1
    assert summary["agreement"][0]["compared"] == 10 and summary["agreement"][0]["agreement"] == 1
    merged = [json.loads(line) for line in (tmp_path / "merged.jsonl").read_text().splitlines()]
    assert all(row["votes"] == [2, 0, 0] for row in merged)
    # the file's own rows are recognised as the same comparisons
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    with_file = merge_verdicts([str(ana.output), str(file)], tmp_path / "again.jsonl")
    assert with_file["labellers"] == {"ana": 10, "pairs": 10} and with_file["comparisons"] == 11


def test_what_the_file_says_stays_on_the_server(file: Path) -> None:
    ana, ben = Reviewer(file, "ana"), Reviewer(file, "ben")
    shown = ana.next()
    assert set(shown) == {"shown", "turns", "answers"} and set(shown["shown"]) == {"labeller", "key", "count"}
    assert all(set(a) == {"html"} for a in shown["answers"])
    assert {"<p><strong>Apple</strong></p>\n", "<p>Stone</p>\n"} == {answer["html"] for answer in shown["answers"]}
    assert "result" not in ana.get("/next")
    assert Reviewer(file, "ana").next() == shown
    orders = [[[a["html"] for a in c["answers"]] for c in person.judge_all()] for person in (ana, ben)]
    assert orders[0] != orders[1] and [sorted(c) for c in orders[0]] == [sorted(c) for c in orders[1]]


def test_the_first_without_a_verdict_of_this_person_is_next(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "all.jsonl"
    ana, ben = Reviewer(file, "ana", output=output), Reviewer(file, "ben", output=output)
    first = ana.next()
    ids = ana.judge(first)["ids"]
    assert (ana.number(ana.next()), ben.number(ben.next())) == (1, 0)
    assert Reviewer(file, "ana", output=output).get("")["judged"] == 1
    assert "already" in ana.judge(first, status=400)["message"]  # another tab has it on the screen
    ana.client.post("/api/verdicts/remove", json={"ids": ids})
    assert ana.next() == first
    ana.post("skipped", shown=first["shown"])
    assert ana.number(ana.next()) == 1 and ana.get("")["skipped"] == 1
    ana.post("skipped")
    assert ana.next() == first
    for body in ({"kind": "edit"}, {"kind": "choice", "index": 2}, {"kind": "choice"}, {"kind": ["tie"]}):
        ana.post("verdicts", 400, shown=first["shown"], **body)
    for wrong in (
        {"key": "0" * 32},
        {"key": 1},
        {"count": None},
        {"count": 1},
        {"labeller": "ben"},
        {"labeller": None},
    ):
        ana.post("verdicts", 400, shown={**first["shown"], **wrong}, kind="tie")
        ana.post("skipped", 200 if wrong == {"count": 1} else 400, shown={**first["shown"], **wrong})
    ana.post("verdicts", 400, kind="tie")
    assert ana.rows() == [] and ana.get("")["skipped"] == 0


def test_agreement_with_the_file(file: Path) -> None:
    ana = Reviewer(file)
    ana.judge_all(tie=1)  # alphabetically: all as the file says but for the tie and the call of a tool
    result = ana.get("/next")["result"]
    preferred = sum(1 for row in ana.rows() if row.get("chosen") in ("**Apple**", "x", turn("C"), turn("G")))
    assert preferred == 4
    assert result["agreement"]["compared"] == 9  # without the sampled row
    assert 0.5 < result["agreement"]["agreement"] < 1 and result["agreement"]["kappa"] < 1
    assert result["repeated"] is None
    assert result["command"].startswith("mlx-dpo label --merge") and str(ana.output) in result["command"]


def test_a_file_without_preferences_has_no_agreement(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completions": list("abcdefghi")}) + "\n")
    ana = Reviewer(path)
    judged = ana.judge_all()
    assert [len(shown["answers"]) for shown in judged] == [3, 3, 3]  # the same for everybody
    htmls = [sorted(a["html"] for a in shown["answers"]) for shown in judged]
    assert htmls == [sorted(a["html"] for a in shown["answers"]) for shown in Reviewer(path, "ben").judge_all()]
    assert ana.get("/next")["result"]["agreement"] is None


def test_some_are_shown_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_progress, "REPEAT_AFTER", 5)
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(40)))
    ana = Reviewer(path, repeat=0.25)
    num_all = ana.get("")["comparisons"]
    numbers = [ana.number(shown) for shown in ana.judge_all()]
    again = [number for number in set(numbers) if numbers.count(number) == 2]
    assert num_all == len(numbers) == 40 + len(again) == ana.get("")["judged"] and 3 <= len(again) <= 20
    places = [[i for i, other in enumerate(numbers) if other == number] for number in again]
    assert all(second - first > 5 for first, second in places if second < 40)  # at the end nothing else is left
    assert ana.get("/next")["result"]["repeated"]["share"] == 1
    merged = merge_verdicts([str(ana.output)], tmp_path / "merged.jsonl")
    assert (merged["repeated"], merged["changed"], merged["comparisons"]) == (len(again), 0, 40)


def test_a_person_without_a_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_page, "_user_name", lambda: "")
    page = Reviewer(file, None)
    assert page.output.name == "pairs.verdicts.jsonl" and page.get("")["labeller"] is None
    assert page.client.get("/api/review/next").status_code == 400
    page.post("labeller", 400, name=" ")
    assert page.post("labeller", name=" Eva ")["labeller"] == "Eva"
    page.post("labeller", 400, name="Ida")
    page.judge(page.next())
    assert page.rows()[0]["labeller"] == "Eva"


def test_the_file_itself_is_never_written(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)
    for output in (file, link):
        with pytest.raises(UserError, match="file to review"):
            open_review_page(str(file), output, "ana", 0)
    (tmp_path / "empty.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match="no rows to judge") as error:
        open_review_page(str(tmp_path / "empty.jsonl"), None, "ana", 0)
    assert str(tmp_path / "empty.jsonl:1") in str(error.value)
    assert open_review_page(str(file), None, "../b n", 0).verdicts.preferences.path.name == "pairs._b_n.jsonl"
    assert default_output("hf:owner/pairs", "ana") == Path("pairs.ana.jsonl")
