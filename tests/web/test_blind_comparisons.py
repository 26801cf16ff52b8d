"""Verdicts on answers of two policies: what is counted, kept and revealed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from mlx_dpo.utils.statistics import win_rate_interval
from mlx_dpo.web.answer_generator import AnswerGenerator
from mlx_dpo.web.page_app import CollectPage
from mlx_dpo.web.verdicts import VerdictFiles

USER = [{"role": "user", "content": "Hi"}]
PROMPTS = [[{"role": "user", "content": f"Question {i}"}] for i in range(4)]
POLICIES = ["base", "tuned"]


class Comparing:
    """The requests of a page whose answers are not sampled."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "pairs.comparisons.jsonl"
        self.generator = AnswerGenerator("model", folder / "adapters")
        self.generator.adapter_digest = "one"
        self.page = CollectPage(self.generator, VerdictFiles(folder / "pairs.jsonl"), PROMPTS)
        self.client = TestClient(self.page.application())

    def ask(self, policies: list[str] | None = None) -> str:
        return self.page.comparisons.remember(policies or POLICIES, self.generator)

    def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return dict(response.json())

    def judge(self, comparison: str, choice: Any, status: int = 200, **changes: Any) -> dict[str, Any]:
        body = {"comparison": comparison, "messages": USER, "answers": ["a", ""], "choice": choice, **changes}
        return self.post("/api/comparisons", status, **body)

    def get(self, path: str = "") -> dict[str, Any]:
        return dict(self.client.get(f"/api/comparisons{path}").json())


@pytest.fixture
def comparing(tmp_path: Path) -> Comparing:
    return Comparing(tmp_path)


def test_win_rate_and_its_interval(comparing: Comparing) -> None:
    assert comparing.get()["win_rate"] is None
    scores = []
    for i, (choice, score) in enumerate([(1, 1), (1, 1), (0, 0), (None, 0.5), (1, 1)]):
        messages = [{"role": "user", "content": f"Question {i}"}]
        result = comparing.judge(comparing.ask(), choice, messages=messages)
        scores.append(score)
        assert result["win_rate"] == pytest.approx(np.mean(scores))
        assert result["interval"] == pytest.approx(list(win_rate_interval(scores)))
        rows = [json.loads(line) for line in comparing.file.read_text().splitlines()]
        assert len(rows) == i + 1 and rows[-1]["prompt"] == messages and rows[-1]["policies"] == POLICIES
    assert (result["tuned"], result["base"], result["tie"]) == (3, 1, 1)
    assert comparing.judge(comparing.ask(["tuned", "base"]), 0)["tuned"] == 4


def test_prompts_asked_again_widen_the_interval(comparing: Comparing) -> None:
    for i in range(10):
        comparing.judge(comparing.ask(), int(i % 5 > 1), messages=[{"role": "user", "content": str(i % 5)}])
    low, high = comparing.get()["interval"]
    once = win_rate_interval([0, 0, 1, 1, 1] * 2)
    assert high - low > once.high - once.low


def test_a_verdict_is_given_once(comparing: Comparing) -> None:
    comparison = comparing.ask()
    comparing.judge(comparison, 1)
    for unknown in (comparison, "x", None, 1):
        assert "whose" in comparing.judge(unknown, 1, status=400)["message"]  # type: ignore[arg-type]
    assert len(comparing.file.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        *[{"choice": choice} for choice in (2, -1, True, "0", 0.5)],
        *[{"answers": answers} for answers in (["a"], ["a", 1], "ab", None)],
        *[{"messages": messages} for messages in ([], "Hi", [{"role": "user"}], USER[0])],
    ],
)
def test_what_is_no_verdict(comparing: Comparing, changes: dict[str, Any]) -> None:
    comparison = comparing.ask()
    comparing.judge(comparison, status=400, **{"choice": 0, **changes})
    assert not comparing.file.exists()
    comparing.judge(comparison, 1)


def test_undo(comparing: Comparing) -> None:
    kept, removed = comparing.ask(), comparing.ask()
    comparing.judge(kept, 1)
    before = comparing.file.read_bytes()
    comparing.judge(removed, 0)
    result = comparing.post("/api/comparisons/remove", id=removed)
    assert (result["removed"], result["tuned"], result["base"]) == (1, 1, 0)
    assert comparing.file.read_bytes() == before
    comparing.post("/api/comparisons/remove", 400, id=[kept])


def test_only_verdicts_on_the_adapter_that_is_loaded_count(comparing: Comparing) -> None:
    other = comparing.ask()
    comparing.generator.adapter_digest = "two"  # trained again, in the same folder
    comparing.judge(other, 1)
    assert comparing.get()["tuned"] == 0
    comparing.judge(comparing.ask(), 0)
    assert (comparing.get()["tuned"], comparing.get()["base"]) == (0, 1)
    comparing.generator.adapter_digest = "one"
    assert (comparing.get()["tuned"], comparing.get()["base"]) == (1, 0)


def test_a_file_that_was_damaged(comparing: Comparing) -> None:
    comparing.judge(comparing.ask(), 1)
    row = json.loads(comparing.file.read_text())
    damaged = [{**row, "winner": ["tuned"]}, {**row, "prompt": 1}, {**row, "winner": "x"}, [], 1]
    with comparing.file.open("a") as stream:
        stream.write("".join(json.dumps(value) + "\n" for value in damaged) + "not JSON\n\xff")
    assert comparing.get()["tuned"] == 1
    assert len(comparing.get("/revealed")["rows"]) == 1
    comparing.judge(comparing.ask(), 1)
    assert comparing.get()["tuned"] == 2


def test_which_is_which_is_shown_on_request(comparing: Comparing) -> None:
    comparison = comparing.ask(["tuned", "base"])
    assert "policies" not in comparing.judge(comparison, 0)
    (row,) = comparing.get("/revealed")["rows"]
    assert row == {"prompt": USER, "answers": ["a", ""], "policies": ["tuned", "base"], "winner": "tuned"}


def test_fresh_prompts(comparing: Comparing) -> None:
    judged = {"messages": PROMPTS[0], "answers": ["a", "b"], "kind": "choice", "index": 0}
    comparing.post("/api/verdicts", verdict=judged)
    comparing.judge(comparing.ask(), 1, messages=PROMPTS[2])
    assert comparing.get("/prompts/0") == {"index": 1, "messages": PROMPTS[1]}
    assert comparing.get("/prompts/2")["index"] == 3
    assert comparing.get("/prompts/4") == {"index": None, "messages": []}


def test_comparisons_while_collecting(comparing: Comparing, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = {"messages": USER, "answers": ["a", "b"], "kind": "choice", "index": 1}
    comparison = comparing.ask()
    thumb = {"messages": USER, "answers": ["a", "b"], "kind": "thumbs", "index": 0, "is_good": True}
    assert comparing.post("/api/verdicts", verdict=thumb, comparison=comparison)["policies"] is None
    result = comparing.post("/api/verdicts", verdict=verdict, comparison=comparison)
    assert result["policies"] == POLICIES and result["wins"]["tuned"] == 1 and result["counts"]["preferences"] == 1
    undone = comparing.post("/api/verdicts/remove", ids=result["ids"])
    assert undone["removed"] == 1 and undone["wins"]["tuned"] == 0 and undone["counts"]["preferences"] == 0
    result = comparing.post("/api/verdicts", verdict=verdict, comparison="of an earlier server")
    assert result["policies"] is None and result["counts"]["preferences"] == 1 and result["wins"]["tuned"] == 0
