"""The collecting page in a real Chromium, by the keyboard, with the server in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.browser import Browser
from tests.web.collect_server_process import ROOT, CollectServer, CollectView, collect_server

SHORT = ("--max-tokens", "12", "--num-answers", "2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectServer]:
    with collect_server(tmp_path_factory.mktemp("collect"), *SHORT) as started:
        yield started


@pytest.fixture
def view(server: CollectServer, browser: Browser) -> Iterator[CollectView]:
    for file in server.folder.glob("*.jsonl"):
        file.unlink()
    opened = server.open_page(browser)
    yield opened
    assert opened.opened.errors == [] and opened.dialogs == []
    assert {url.split("/")[2] for url in opened.opened.requests} == {server.address.split("/")[2]}
    opened.page.close()


def test_ten_preferences_by_keyboard(server: CollectServer, view: CollectView) -> None:
    expected = []
    for i in range(8):
        view.ask(f"Question {i}")
        answers = view.answers()
        view.press("12"[i % 2])
        view.wait_for_status("Saved.")
        expected.append((f"Question {i}", answers[i % 2], answers[1 - i % 2]))
        view.press("Escape", "n")  # a new conversation
    for i in (8, 9):  # edits
        view.ask(f"Question {i}")
        answers = view.answers()
        view.press("e", "2")
        view.page.keyboard.press("Control+A")
        view.page.keyboard.type(f"Edited {i}")
        view.press("Control+Enter")
        view.wait_for_status("Saved.")
        expected.append((f"Question {i}", f"Edited {i}", answers[1]))
        view.press("Escape", "n")
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in server.rows()] == expected
    assert view.counts == "10 preferences"
    assert {len(row["id"]) for row in server.rows()} == {32}
    command = [sys.executable, "-m", "mlx_dpo", "data", "check", str(server.output)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def test_the_chosen_answer_continues_the_conversation(server: CollectServer, view: CollectView) -> None:
    view.page.locator("#prompt:focus").wait_for()  # the page has begun, and reacts to keys
    view.page.locator("#settings summary").click()
    view.page.locator("#system").fill("Be brief.")
    view.page.locator("#prompt").focus()
    view.ask("First question")
    first = view.answers()
    view.press("2")
    view.ask("Second question")
    second = view.answers()
    view.press("1")
    view.wait_for_status("Saved.")
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "First question"}
    one, two = server.rows()
    assert one["prompt"] == [system, user] and one["chosen"] == [{"role": "assistant", "content": first[1]}]
    following = [{"role": "assistant", "content": first[1]}, {"role": "user", "content": "Second question"}]
    assert two["prompt"] == [system, user, *following]
    assert two["chosen"] == [{"role": "assistant", "content": second[0]}]
    assert two["rejected"] == [{"role": "assistant", "content": second[1]}]
    assert view.turns() == ["Be brief.", "First question", first[1], "Second question", second[0]]


def test_tie_all_bad_thumbs_and_skip(server: CollectServer, view: CollectView) -> None:
    view.ask("Tie")
    tied = view.answers()
    view.press("t")
    view.ask("All bad")
    view.press("b")
    view.ask("Thumbs")
    good, bad = view.answers()
    view.press("g", "1")
    view.page.locator(".answer .note", has_text="Marked as good.").wait_for()
    view.press("g", "1")
    view.wait_for_error("marked already")
    view.press("x", "2")
    view.ask("Skipped")  # the one good answer continues the conversation
    view.press("Space")
    view.wait_for_status("Skipped.")
    assert view.turns() == ["Thumbs", good]
    assert [(row["completions"], row["scores"]) for row in server.rows()] == [(tied, [0, 0])]
    labels = [(row["prompt"], row["completion"], row["label"]) for row in server.rows("pairs.labels.jsonl")]
    assert [(prompt, label) for prompt, _, label in labels[:2]] == [("All bad", False)] * 2
    assert labels[2:] == [("Thumbs", good, True), ("Thumbs", bad, False)]
    assert view.counts == "0 preferences, 1 tie, 4 labels"


def test_undo(server: CollectServer, view: CollectView) -> None:
    for question in ("One", "Two"):
        view.ask(question)
        view.press("1")
        view.wait_for_status("Saved.")
        view.press("Escape", "n")
    view.press("Escape", "u")
    view.wait_for_status("Undone")
    assert view.counts == "1 preference" and [row["prompt"] for row in server.rows()] == ["One"]
    answers = view.answers()
    view.press("2")
    view.wait_for_status("Saved.")
    view.press("Escape", "u")
    view.wait_for_status("Undone")
    view.press("u")
    view.page.locator("#undo[disabled]").wait_for(state="attached")
    assert server.rows() == [] and view.turns() == ["One"]
    view.press("1")
    view.wait_for_status("Saved.")
    assert [row["prompt"] for row in server.rows()] == ["One"] and answers != view.answers()


def test_typing_is_not_judging(server: CollectServer, view: CollectView) -> None:
    view.ask("A question")
    view.press("/")
    view.page.keyboard.type("12 tubes, next")
    assert view.page.locator("#prompt").input_value() == "12 tubes, next"
    view.press("Enter")
    view.wait_for_error("Judge these answers first")
    assert server.rows() == []
    view.press("Escape", "e", "1")
    view.press("Escape")  # leaves the editor
    assert view.page.locator(".editor").count() == 0
    view.press("2")
    view.wait_for_status("Saved.")
    assert len(server.rows()) == 1


def test_two_tabs(server: CollectServer, view: CollectView, browser: Browser) -> None:
    other = server.open_page(browser)
    for tab, text in ((view, "In one tab"), (other, "In another")):
        tab.page.locator("#prompt").fill(text)
    for tab in (view, other):
        tab.page.locator("#prompt").press("Enter")
    for tab in (view, other):
        tab.wait_for_answers()
        tab.press("1")
        tab.wait_for_status("Saved.")
    assert sorted(row["prompt"] for row in server.rows()) == ["In another", "In one tab"]
    assert other.counts == "2 preferences" and other.opened.errors == []
    other.page.close()


def test_each_control_has_a_name_and_shows_its_focus(view: CollectView) -> None:
    view.ask("A question")
    view.press("/")
    reached = []
    for _ in range(20):
        view.press("Tab")
        reached.append(
            view.page.evaluate(
                "[document.activeElement.innerText || document.activeElement.id, "
                "getComputedStyle(document.activeElement).outlineStyle]"
            )
        )
    names = " ".join(name.replace("\n", " ") for name, _ in reached)
    for name in (
        "Better 1",
        "Edit e 2",
        "Good g 1",
        "Bad x 2",
        "Tie t",
        "All bad b",
        "Skip space",
        "Collect",
        "Settings",
    ):
        assert name in names
    assert {style for name, style in reached if name and name != "Ask"} >= {"solid"}


def test_answers_that_make_no_pair(server: CollectServer, view: CollectView) -> None:
    def answer_with(*texts: str) -> None:
        answers = [{"index": i, "text": t, "html": t, "finish_reason": "stop"} for i, t in enumerate(texts)]
        events = (("begin", {"html": ["Hi"]}), ("answers", {"answers": answers}), ("end", {"comparison": None}))
        body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
        view.page.route("**/api/answers", lambda route: route.fulfill(body=body, content_type="text/event-stream"))

    for texts, sentence in ((("Same", "Same"), "are the same"), (("", "Hello"), "is empty")):
        answer_with(*texts)
        view.send("Hi")
        view.wait_for_status(sentence)
        for key in "12tb":
            view.press(key)
            view.wait_for_error(sentence)
        view.press("Space")
        view.wait_for_status("Skipped.")
    view.send("Hi")
    view.wait_for_status("is empty")
    view.press("g", "1")
    view.wait_for_error("Answer 1 is empty")
    view.press("x", "2")
    view.page.locator(".answer .note", has_text="Marked as bad.").wait_for()
    view.press("e", "2")
    view.press("Control+Enter")
    view.wait_for_error("Change the text first")
    view.page.keyboard.type(" there")
    view.press("Control+Enter")
    view.wait_for_status("Saved.")
    assert [(row["chosen"], row["rejected"]) for row in server.rows()] == [("Hello there", "Hello")]
    assert [(row["completion"], row["label"]) for row in server.rows("pairs.labels.jsonl")] == [("Hello", False)]
