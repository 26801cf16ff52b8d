"""The collecting page in a real Chromium, by the keyboard, with the server in a process of its own."""

from __future__ import annotations

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
    command = [sys.executable, "-m", "mlx_dpo", "data", "check", str(server.output)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
