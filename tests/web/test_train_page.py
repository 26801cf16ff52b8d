"""The training view in a real Chromium, with the server and the training in processes of their own."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser import Browser
from tests.web.accessibility import violations
from tests.web.collect_server_process import CollectServer, collect_server, wait_for
from tests.web.train_page import TrainView, write_pairs

QUESTIONS = [f"Question {i}?" for i in range(12)]
CHOSEN = 6
NAME = "my 'run'; $x"
HOSTILE = "<img src=x onerror=alert(1)> $(x) 'y'"


def assert_clean(server: CollectServer, view: TrainView) -> None:
    assert view.opened.errors == [] and view.dialogs == []
    assert {url.split("/")[2] for url in view.opened.requests} == {server.address.split("/")[2]}


def test_from_an_empty_folder_to_a_win_rate(tmp_path: Path, browser: Browser) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{question}\n" for question in QUESTIONS))
    with collect_server(tmp_path, "--max-tokens", "16", "--prompts", str(prompts)) as server:
        view = TrainView(server, browser)
        expect(view.page.locator("#train-outline")).to_contain_text("no rows")
        assert view.page.locator("#train-start").is_disabled()
        view.page.get_by_role("link", name="Collect", exact=True).click()
        choose_several(server, view)
        view.show()
        view.field("rank").fill("none")
        expect(view.page.locator("#train-rank-error")).to_have_text("expected a whole number, not 'none'")
        view.start(rank="4", iters="3", adapter_path=NAME)
        expect(view.page.locator("#train-charts canvas").first).to_be_visible(timeout=60_000)
        view.expect_title(f"{NAME}: finished")
        assert (tmp_path / NAME / "rows.jsonl").read_bytes() == server.output.read_bytes()
        expect(view.page.locator("#model")).to_contain_text("with " + str(tmp_path / NAME))
        expect(view.page.locator("#train-verdict")).to_contain_text("3 steps")
        compare_blind(server, view, [question for question in QUESTIONS if question not in prompts_of(server)])
        view.page.locator("#train-output-details summary").click()
        view.compare("# Again")
        for width, theme in ((1200, "light"), (390, "dark")):
            view.page.set_viewport_size({"width": width, "height": 900})
            view.page.emulate_media(color_scheme=theme)
            assert violations(view) == []
            assert view.page.evaluate("document.documentElement.scrollWidth") <= width
        assert_clean(server, view)
        view.page.close()


def prompts_of(server: CollectServer) -> list[str]:
    return [row["prompt"] for row in server.rows()]


def choose_several(server: CollectServer, view: TrainView) -> None:
    for question in QUESTIONS:
        expect(view.page.locator("#conversation")).to_contain_text(question)
        view.wait_for_answers()
        if len(server.rows()) == CHOSEN:
            return
        answers = view.answers()
        view.press("1" if answers[0] != answers[1] else " ")  # nothing to choose: skip


def compare_blind(server: CollectServer, view: TrainView, fresh: list[str]) -> None:
    rate = view.page.locator("#comparison-rate")
    expect(rate).to_contain_text("No comparisons")
    view.page.locator("#comparison-next").click()
    expect(view.page.locator("#comparison-turns")).to_contain_text(fresh[0])  # not what was trained on
    expect(view.page.locator("#comparison-first")).to_be_visible()
    view.press("1")
    expect(rate).to_contain_text("Of 1 comparisons")
    expect(view.page.locator("#comparison-turns")).to_contain_text(fresh[1])
    expect(view.page.locator("#comparison-first")).to_be_visible()
    view.press("e")
    expect(rate).to_contain_text("1 were equal")
    expect(view.page.locator("#comparison-first")).to_be_visible()
    view.press("Escape")
    expect(view.page.locator("#comparison-prompt")).to_be_focused()
    view.compare(HOSTILE)
    view.press("2")
    expect(rate).to_contain_text("95% interval")
    expect(rate).to_contain_text("Of 3 comparisons")
    rows = server.rows("pairs.comparisons.jsonl")
    assert [row["prompt"][0]["content"] for row in rows] == [*fresh[:2], HOSTILE]
    wins = [row["winner"] for row in rows]
    assert wins[1] == "tie" and wins[0] == rows[0]["policies"][0] and wins[2] == rows[2]["policies"][1]
    expect(rate).to_contain_text(f"it won {wins.count('tuned')}, lost {wins.count('base')}, and 1 were equal")
    assert len(server.rows()) == CHOSEN  # comparisons are no preferences
    view.page.locator("#comparison-reveal").click()
    expect(view.page.locator("#comparison-revealed .prompt").first).to_have_text(HOSTILE)
    view.page.locator("#comparison-revealed").click(position={"x": 1, "y": 1})
    view.press("u")
    expect(rate).to_contain_text("Of 2 comparisons")
    commands = view.page.locator("#next-commands code").all_inner_texts()
    words = [shlex.split(command) for command in commands]
    for name in ("compare", "fuse", "push"):
        assert any(part[:2] == ["mlx-dpo", name] and str(server.folder / NAME) in part for part in words)
    view.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view.page.locator("#next-commands button").nth(2).click()
    expect(view.page.locator("#next-commands button").nth(2)).to_have_text("Copied")
    assert view.page.evaluate("navigator.clipboard.readText()") == commands[2]


@pytest.mark.slow  # tests of the routes end a server too
def test_kill_the_server_stop_and_resume(tmp_path: Path, browser: Browser) -> None:
    with collect_server(tmp_path, "--max-tokens", "8") as server:
        write_pairs(server)
        view = TrainView(server, browser)
        view.start(adapter_path=HOSTILE, iters="4000")
        view.expect_title("training, step")
        server.kill()
        expect(view.page.locator("#train-error")).to_contain_text("The training goes on")
        lines = (tmp_path / HOSTILE / "metrics.jsonl").read_text().count("\n")
        wait_for(lambda: (tmp_path / HOSTILE / "metrics.jsonl").read_text().count("\n") > lines)
        server.start()  # on the same port: the page goes on
        expect(view.page.locator("#train-error")).to_be_hidden(timeout=30_000)
        view.expect_title(f"{HOSTILE}: training, step")
        with server.client() as client:
            state = client.get("/api/state").json()
            assert not state["is_ready"] and "training" in state["release_reason"]
            body = {"messages": [{"role": "user", "content": "Hi"}]}
            assert "while training has the memory" in client.post("/api/answers", json=body).text
            settings = {"settings": {"adapter_path": "other"}}
            assert "in progress" in client.post("/api/training/start", json=settings).json()["message"]
        view.page.locator("#train-stop").click()
        view.expect_title("stopped")
        step = view.page.locator("#train-title").inner_text()
        assert "it can be resumed" in step
        wait_for(lambda: server.wait_until_loaded()["adapter"] is None)
        view.page.locator("#train-resume").click()
        expect(view.page.locator("#train-stop")).to_be_visible()
        view.expect_title("training, step")
        view.page.locator("#train-stop").click()
        view.expect_title("stopped")
        view.page.locator("#train-output-details summary").click()
        expect(view.page.locator("#train-command")).to_contain_text("--resume")
        view.opened.errors.clear()  # Chromium itself reports that the server was gone
        assert_clean(server, view)
        view.page.close()
