"""A file that a person judges in a real browser, by the keyboard, with the server killed in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.browser import Browser
from tests.web.collect_server_process import CollectServer, CollectView, collect_server

HOSTILE = "<img src=x onerror=alert(1)> b"
ROWS = [
    {"prompt": "Question 0", "chosen": "a **bold** answer", "rejected": HOSTILE},
    *({"prompt": f"Question {i}", "completions": [f"a{i}", f"b{i}"], "scores": [1, 0]} for i in (1, 2, 3)),
]


def review(folder: Path, *options: str) -> Any:
    """A server for the file votes.jsonl, whose last line is broken."""
    file = folder / "votes.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS) + "broken\n")
    return collect_server(folder, "--review", str(file), *options, model=None, output="votes.ana.jsonl")


def prefer(view: CollectView, letter: str) -> None:
    """Press the key of the answer that begins with a letter, or that ends with it."""
    answers = [text.strip() for text in view.answers()]
    index = next(i for i, text in enumerate(answers) if text.startswith(letter) or text.endswith(letter))
    view.press(str(index + 1))


def wait_for_progress(view: CollectView, text: str) -> None:
    view.page.locator("#review-progress", has_text=text).wait_for()


def wait_for_question(view: CollectView, number: int) -> None:
    view.page.locator("#conversation", has_text=f"Question {number}").wait_for()
    view.wait_for_answers()


def rows(server: CollectServer) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "id"} for row in server.rows("votes.ana.jsonl")]


def test_a_file_is_judged_by_keyboard(tmp_path: Path, browser: Browser) -> None:
    with review(tmp_path, "--labeller", "ana") as server:
        view = server.open_page(browser)
        wait_for_question(view, 0)
        assert view.page.locator(".answer strong").inner_text() == "bold" and HOSTILE in "".join(view.answers())
        for hidden in ("#composer", "#settings", ".answer .edit", ".answer .good"):
            assert not view.page.locator(hidden).first.is_visible()
        assert "votes.jsonl:5: not valid JSON" in view.page.locator("#review-left-out").inner_text()
        view.press("x", "g", "n", "3")  # keys of the page with a model, and of an answer that is not there
        prefer(view, "a")
        wait_for_progress(view, "1 of 4 judged by ana")
        view.press("u")
        view.wait_for_status("Undone")
        wait_for_progress(view, "0 of 4")
        assert view.turns() == ["Question 0"] and rows(server) == []
        prefer(view, "a")
        wait_for_question(view, 1)
        view.press(" ")
        wait_for_question(view, 2)
        wait_for_progress(view, "1 of 4 judged by ana, 1 skipped")
        view.press("e")
        wait_for_question(view, 3)
        answers = view.answers()
        server.kill()
        view.press("1")
        view.wait_for_error("This verdict is not saved")
        server.start()
        view.wait_for_status("Connected again.")
        assert view.answers() == answers and len(rows(server)) == 2
        view.opened.errors.clear()  # the connection was refused
        view.press("b")
        wait_for_question(view, 1)  # what was skipped is forgotten with the server
        prefer(view, "b")
        result = view.page.locator("#review-result", has_text="All 4 comparisons are judged.")
        result.wait_for()
        assert "25% of 4" in result.inner_text() and "kappa" in result.inner_text()
        assert f"label --merge {server.output}" in result.inner_text()
        assert view.opened.errors == [] and view.dialogs == []
        assert {url.split("/")[2] for url in view.opened.requests} == {server.address.split("/")[2]}
        view.page.close()
        tie = {"scores": [0, 0], "labeller": "ana"}
        written = rows(server)
        orders = [row.pop("completions") for row in written if "completions" in row]
        assert [sorted(order) for order in orders] == [["a2", "b2"], ["a3", "b3"]]
        assert written == [
            {"prompt": "Question 0", "chosen": "a **bold** answer", "rejected": HOSTILE, "labeller": "ana"},
            {"prompt": "Question 2", **tie},
            {"prompt": "Question 3", **tie, "both_bad": True},
            {"prompt": "Question 1", "chosen": "b1", "rejected": "a1", "labeller": "ana"},
        ]


def test_a_person_without_a_name_and_two_tabs(tmp_path: Path, browser: Browser) -> None:
    with review(tmp_path, "--labeller", " ", "--output", str(tmp_path / "votes.ana.jsonl")) as server:
        view = server.open_page(browser)
        view.page.locator("#labeller:focus").wait_for()
        view.page.keyboard.type("ana")
        view.press("Enter")
        wait_for_question(view, 0)
        other = server.open_page(browser, width=390, theme="dark")
        wait_for_question(other, 0)
        prefer(view, "a")
        wait_for_question(view, 1)
        prefer(other, "b")
        other.wait_for_error("has a verdict already")
        other.press(" ")
        wait_for_question(other, 1)
        wait_for_progress(other, "1 of 4 judged by ana")
        assert [row["labeller"] for row in rows(server)] == ["ana"]
        assert other.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for each in (view, other):
            each.page.close()
