"""axe-core on the views of the page, in both themes and at both widths; what a screen reader and a keyboard need."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.browser import Browser
from tests.web.accessibility import violations
from tests.web.collect_server_process import CollectServer, CollectView, collect_server

MARKDOWN = f"""# Title

A [link](https://x.org), `code`, ~~none~~, and

```
a block of code that is wider than the page {"x" * 200}
```

| {"wide " * 50} | table |
|---|---|
| 1 | 2 |
"""
WIDTHS = [1200, pytest.param(390, marks=pytest.mark.slow)]  # pixels; the second is a phone's
ROWS = [
    {"prompt": f"Question {i}", "chosen": MARKDOWN, "rejected": f"Answer {i}", "labeller": "ana", "edited": True}
    for i in range(20)
]
BAD_ROWS = [{"prompt": "Same", "chosen": "x", "rejected": "x"}, {"prompt": "No completion"}]
WATCH_ANNOUNCEMENTS = """() => {
  window.announced = [];
  for (const region of document.querySelectorAll("[aria-live], [role=log], [role=status], [role=alert]")) {
    const observer = new MutationObserver(() => window.announced.push(region.textContent));
    observer.observe(region, {childList: true, subtree: true});
  }
}"""
FOCUS = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  const name = node === document.body ? "" : node.id || node.innerText || node.tagName;
  return [name, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0];
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectServer]:
    options = ("--max-tokens", "24", "--num-answers", "3")
    with collect_server(tmp_path_factory.mktemp("axe"), *options) as started:
        yield started


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def theme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WIDTHS)
def view(request: pytest.FixtureRequest, server: CollectServer, browser: Browser, theme: str) -> Iterator[CollectView]:
    for file in server.folder.glob("*.jsonl"):
        file.unlink()
    opened = server.open_page(browser, width=request.param, theme=theme)
    opened.page.locator("#prompt:focus").wait_for()
    yield opened
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= request.param  # nothing sticks out
    assert opened.opened.errors == []
    opened.page.close()


def test_axe_on_collecting(view: CollectView) -> None:
    assert violations(view) == []
    view.page.locator("#settings summary").click()
    view.page.locator("#prompt").fill(MARKDOWN)
    view.page.locator("#prompt").press("Enter")
    view.wait_for_answers()
    assert violations(view) == []
    view.press("e", "2")
    view.page.locator(".editor").fill(MARKDOWN)
    assert violations(view) == []
    view.press("Control+Enter")
    view.wait_for_status("Saved.")
    view.ask("Another")
    view.press("g", "1")
    view.page.locator(".answer .note", has_text="Marked as good.").wait_for()
    view.press("g", "1")
    view.wait_for_error("marked already")
    assert violations(view) == []


def test_axe_on_the_data_view(server: CollectServer, view: CollectView) -> None:
    view.page.get_by_role("link", name="Data", exact=True).click()
    view.page.locator("#data-status", has_text="0 rows listed").wait_for()
    assert violations(view) == []
    server.output.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *BAD_ROWS]))
    view.page.locator("#data-status", has_text="22 rows listed").wait_for()
    assert violations(view) == []
    view.page.locator("#data-list").press("Enter")
    view.page.locator("#row-editor[open]").wait_for()
    assert violations(view) == []
    view.press("Escape", "i")
    view.page.locator("#import-text").fill("not a row")
    view.page.locator("#import-add").click()
    view.page.locator("#import-problems li").wait_for()
    assert violations(view) == []


def test_axe_on_the_settings_of_a_run(view: CollectView) -> None:
    view.page.get_by_role("link", name="Train", exact=True).click()
    view.page.locator("#train-outline", has_text="no rows").wait_for()
    assert violations(view) == []
    view.page.locator("#train-rank").fill("none")
    view.page.locator("#train-rank-error", has_text="expected a whole number").wait_for()
    assert violations(view) == []


@pytest.fixture(scope="module")
def review_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectServer]:
    folder = tmp_path_factory.mktemp("review")
    rows = [{"prompt": f"{MARKDOWN}{i}", "chosen": MARKDOWN, "rejected": "b" * 500} for i in range(2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    with collect_server(folder, "--review", str(folder / "rows.jsonl"), "--labeller", " ", model=None) as started:
        yield started


@pytest.mark.parametrize("width", WIDTHS)
def test_axe_on_a_review(review_server: CollectServer, browser: Browser, width: int, theme: str) -> None:
    review_server.output.unlink(missing_ok=True)
    review_server.kill()  # forgets the name
    review_server.start()
    view = review_server.open_page(browser, width=width, theme=theme)
    view.page.locator("#labeller:focus").wait_for()
    assert violations(view) == []
    view.page.keyboard.type("ana")
    view.press("Enter")
    for number in range(2):
        view.page.locator("#review-progress", has_text=f"{number} of 2").wait_for()
        view.wait_for_answers()
        assert violations(view) == []
        assert view.page.evaluate("document.documentElement.scrollWidth") <= width
        view.press("1")
    view.page.locator("#review-result h2").wait_for()
    assert violations(view) == [] and view.opened.errors == []
    view.page.close()


def test_finished_answers_are_announced_once(server: CollectServer, browser: Browser) -> None:
    view = server.open_page(browser)
    view.page.locator("#prompt:focus").wait_for()
    view.page.evaluate(WATCH_ANNOUNCEMENTS)
    view.send("A question")
    view.wait_for_answers()
    answers = view.answers()
    announced = view.page.evaluate("window.announced")
    assert len(announced) <= 3 + 3  # waiting, answering, which is better; and each answer once
    spoken = view.page.locator("#announcements p").all_inner_texts()  # in the order in which they were finished
    assert sorted(spoken) == [f"Answer {i}: {text}" for i, text in enumerate(answers, 1)]
    view.press("Space")
    view.wait_for_status("Skipped.")
    assert view.page.locator("#announcements p").count() == 0
    view.page.close()


@pytest.mark.parametrize("name", ["collect", "data"])
def test_focus_is_visible(server: CollectServer, browser: Browser, name: str) -> None:
    view = server.open_page(browser)
    view.ask("A question")
    view.page.get_by_role("link", name=name.capitalize(), exact=True).click()
    view.page.locator(f"section[data-view={name}]").wait_for()
    reached = []
    for _ in range(25):
        view.press("Tab")
        reached.append(view.page.evaluate(FOCUS))
    hidden = {what for what, is_shown in reached if what and not is_shown}
    assert hidden == set() and len({what for what, _ in reached}) > 12
    view.page.close()


def test_nothing_moves_where_that_is_not_wanted(server: CollectServer, browser: Browser) -> None:
    view = server.open_page(browser)
    view.page.locator("#prompt:focus").wait_for()
    view.page.evaluate("document.querySelector('h1').style.transition = 'opacity 60s'")
    seconds = "parseFloat(getComputedStyle(document.querySelector('h1')).transitionDuration)"
    assert view.page.evaluate(seconds) == 60
    view.page.emulate_media(reduced_motion="reduce")
    assert view.page.evaluate(seconds) == 0
    view.page.close()
