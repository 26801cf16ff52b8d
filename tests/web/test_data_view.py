"""The data view in a real Chromium, with the server in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser
from tests.web.collect_server_process import CollectServer, collect_server, wait_for

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
ROWS = [
    {"prompt": f"Question {i}", "chosen": f"Answer {i}", "rejected": f"Nonsense {i}", "labeller": "ana"}
    for i in range(30)
]
FAST_MS = 100
SLOWEST_COUNTED = 3  # of eight; whatever else the machine does makes some slower

# Changes the list, and returns the milliseconds until a row is shown that it should lead to.
TIMED = """([change, selector, text]) => new Promise((resolve) => {
  const list = document.querySelector("#data-list"), search = document.querySelector("#data-search");
  const start = performance.now();
  if (typeof change === "number") list.scrollTop = change * list.scrollHeight;
  else { search.value = change; search.dispatchEvent(new Event("input", { bubbles: true })); }
  const look = () => {
    const row = document.querySelector(selector);
    const top = row && row.getBoundingClientRect().top - list.getBoundingClientRect().top;
    if (row && row.textContent.includes(text) && top < list.clientHeight) resolve(performance.now() - start);
    else requestAnimationFrame(look);
  };
  look();
})"""


class DataView:
    """What a person does in the data view."""

    def __init__(self, server: CollectServer, browser: Browser, **options: Any) -> None:
        self.server, self.path = server, server.output
        self.opened = browser.open_url(server.url, **options)
        self.page = self.opened.page
        self.page.set_default_timeout(30_000)
        self.dialogs: list[str] = []
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.page.get_by_role("link", name="Data", exact=True).click()
        self.page.locator("#data-list").wait_for()

    def wait_for_status(self, text: str) -> None:
        self.page.locator("#data-status", has_text=text).wait_for()

    def prompts(self) -> list[str]:
        return [str(text) for text in self.page.locator(".row .prompt").all_inner_texts()]

    def open_row(self) -> None:
        self.press("Enter")
        self.page.locator("#row-editor[open]").wait_for()

    def written(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def write(self, *rows: Any) -> None:
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.page.locator("#data-list").focus()
        count = f"{len(rows):,} row{'s' if len(rows) > 1 else ''} listed"
        self.wait_for_status(count)  # another program has written to the file, and the view notices


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectServer]:
    with collect_server(tmp_path_factory.mktemp("data")) as started:
        yield started


@pytest.fixture
def view(server: CollectServer, browser: Browser) -> Iterator[DataView]:
    for file in server.folder.glob("*.jsonl"):
        file.unlink()
    opened = DataView(server, browser)
    yield opened
    assert opened.opened.errors == [] and opened.dialogs == []
    assert {url.split("/")[2] for url in opened.opened.requests} == {server.address.split("/")[2]}
    opened.page.close()


def test_search_and_filter_by_keyboard(view: DataView) -> None:
    view.write(*ROWS, {"prompt": "Same", "chosen": "x", "rejected": "x"}, {**ROWS[3], "labeller": "ben"})
    view.press("/")
    view.page.keyboard.type("29 ANA question")
    view.wait_for_status("1 row listed")
    assert view.prompts() == ["Question 29"]
    view.page.locator("#data-search").fill("")
    view.page.locator("#data-labeller").select_option("ben")
    view.wait_for_status("1 row listed")
    view.page.locator("#data-labeller").select_option("")
    view.page.get_by_label("duplicates").check()
    view.wait_for_status("2 rows listed")
    view.page.get_by_label("duplicates").uncheck()
    view.page.get_by_label("with warnings").check()
    view.wait_for_status("1 row listed")
    assert "Chosen and rejected are equal" in view.page.locator(".row .warning").inner_text()
    assert "32 preferences" in view.page.locator("#data-counts").inner_text()


def test_edit_by_keyboard(view: DataView) -> None:
    view.write(*ROWS)
    view.press("ArrowDown", "ArrowDown")
    view.open_row()
    assert view.page.locator("#row-title").inner_text() == "Line 3 of the preferences"
    view.press("Tab", "Tab")  # whether the chosen completion is JSON, and the completion
    view.press("Control+A")
    view.page.keyboard.type("A better answer")
    view.press("Control+Enter")
    view.wait_for_status("Saved line 3.")
    assert view.written() == [*ROWS[:2], {**ROWS[2], "chosen": "A better answer", "edited": True}, *ROWS[3:]]
    assert view.page.evaluate("document.activeElement.id") == "data-list"
    view.press("u")
    view.wait_for_status("Undone.")
    assert view.written() == ROWS
    view.press("s")
    view.wait_for_status("Swapped line 3.")
    assert view.written()[2] == {**ROWS[2], "chosen": "Nonsense 2", "rejected": "Answer 2"}


def test_delete_and_undo(view: DataView) -> None:
    view.write(*ROWS)
    view.press("End", "Delete")
    view.wait_for_status("Deleted line 30.")
    view.press("Home", "Delete")
    view.wait_for_status("Deleted line 1.")
    assert view.written() == ROWS[1:-1]
    for _ in range(2):
        view.press("u")
        view.wait_for_status("Undone.")
        view.page.locator("#data-status").evaluate("node => { node.textContent = ''; }")
    assert view.written() == ROWS
    assert view.page.locator("#data-undo").is_disabled()


def test_an_edit_that_raced_is_refused(view: DataView) -> None:
    view.write(*ROWS[:2])
    view.open_row()
    view.page.locator("#row-fields .value").first.fill("Mine")
    view.path.write_text(json.dumps({**ROWS[0], "prompt": "Theirs"}) + "\n" + json.dumps(ROWS[1]) + "\n")
    view.press("Control+Enter")
    view.page.locator("#row-error", has_text="changed or deleted meanwhile: nothing was done").wait_for()
    view.page.locator("#row-close").click()
    view.page.locator("#row-error", has_text="Not saved").wait_for()
    view.page.locator("#row-close").click()
    wait_for(lambda: view.prompts() == ["Theirs", "Question 1"])
    assert [row["prompt"] for row in view.written()] == ["Theirs", "Question 1"]
    view.opened.errors.clear()  # Chromium itself reports the refused request


def test_two_tabs(view: DataView, browser: Browser) -> None:
    view.write(*ROWS)
    other = DataView(view.server, browser)
    other.wait_for_status("30 rows listed")
    view.press("Delete")
    view.wait_for_status("Deleted line 1.")
    wait_for(lambda: other.prompts()[0] == "Question 1")
    other.page.close()


def test_import_with_bad_rows(view: DataView, tmp_path: Path) -> None:
    view.write(ROWS[0])
    view.press("i")
    lines = [json.dumps(ROWS[1]), HOSTILE, json.dumps({"prompt": "p"}), json.dumps({**ROWS[2], "prompt": HOSTILE})]
    view.page.locator("#import-text").fill("\n".join(lines))
    view.page.locator("#import-add").click()
    view.page.locator("#import-result", has_text="Added 2 rows. 2 rows can't be used:").wait_for()
    problems = view.page.locator("#import-problems li").all_inner_texts()
    assert problems[0].startswith("Line 2: not valid JSON") and problems[1].startswith("Line 3: ")
    file = tmp_path / f"{HOSTILE.replace('/', '')}.csv"
    file.write_text("prompt,completion,label\nHi,Hello,true\n")
    view.page.locator("#import-file").set_input_files(file)
    view.page.locator("#import-add").click()
    view.page.locator("#import-result", has_text="Added 0 rows and 1 label.").wait_for()
    view.press("Escape")
    wait_for(lambda: view.prompts() == ["Question 0", "Question 1", HOSTILE, "Hi"])
    assert [row["prompt"] for row in view.written()] == ["Question 0", "Question 1", HOSTILE]


def test_export(view: DataView) -> None:
    view.write(*ROWS)
    view.page.locator("#data-search").fill("question 27")
    view.wait_for_status("1 row listed")
    with view.page.expect_download() as download:
        view.page.get_by_text("Export listed pairs").click()
    assert Path(download.value.path()).read_text() == json.dumps(ROWS[27]) + "\n"
    view.page.locator("#data-search").fill("")
    view.wait_for_status("30 rows listed")
    with view.page.expect_download() as download:
        view.page.get_by_text("Export listed pairs").click()
    assert download.value.suggested_filename == "pairs.exported.jsonl"
    assert Path(download.value.path()).read_bytes() == view.path.read_bytes()


def test_hostile_texts_are_shown_as_text(view: DataView) -> None:
    row = {"prompt": HOSTILE, "chosen": HOSTILE, "rejected": f"{HOSTILE}!", "labeller": HOSTILE, HOSTILE: HOSTILE}
    view.write(row, {"prompt": HOSTILE})
    assert view.prompts() == [HOSTILE, json.dumps({"prompt": HOSTILE})]
    wait_for(lambda: HOSTILE in str(view.page.locator("#data-labeller").text_content()))
    view.open_row()
    assert view.page.locator("#row-fields .value").first.input_value() == HOSTILE
    assert HOSTILE[:20] in view.page.locator("#row-warnings").inner_text()
    view.press("Escape")
    assert view.page.locator("main img, main script").count() == 0


def test_ten_thousand_rows_scroll_and_filter_fast(view: DataView) -> None:
    rows = [{**ROWS[i % 30], "prompt": f"Number {i} {'word ' * 50}", "chosen": "answer " * 80} for i in range(10_000)]
    view.write(*rows)
    times = []
    for share in (0.15, 0.55, 0.25, 0.75, 0.35, 0.95, 0.45, 0.85):
        index = int(share * 10_000)
        times.append(view.page.evaluate(TIMED, [share, f"#row-{index}", f"Number {index} "]))
    for word in ("number 77", "number 4321", "number 9", "ana 5678", "number 99", "876", "answer 123", "number 5"):
        times.append(view.page.evaluate(TIMED, [word, "#row-0", f"Number {word.split()[-1]} "]))
    print(f"scroll {times[:8]} ms, filter {times[8:]} ms")
    scrolls, filters = sorted(times[:8]), sorted(times[8:])
    assert scrolls[SLOWEST_COUNTED] < FAST_MS and filters[SLOWEST_COUNTED] < FAST_MS
    assert view.page.locator(".row").count() < 40
