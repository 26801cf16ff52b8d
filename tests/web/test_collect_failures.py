"""The collecting page when something ends, breaks or is full: what was acknowledged is kept, and the page says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.web.collect_server_process import MODEL, ROOT, CollectServer, collect_server, wait_for

SHORT = ("--max-tokens", "8", "--temp", "3")  # answers that differ
FULL_DISK = """
import errno, os
write = os.write
def write_to_a_full_disk(descriptor, content):
    if os.path.exists(os.environ["FULL"]) and b'"chosen"' in bytes(content):
        if len(content) > 20:
            return write(descriptor, bytes(content)[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, content)
os.write = write_to_a_full_disk
"""


def endless_model(folder: Path) -> Path:
    """The bundled model with an end-of-sequence token that it never samples."""
    model = Path(shutil.copytree(ROOT / MODEL, folder / "endless"))
    for name, end in (("config.json", {"eos_token_id": 0}), ("tokenizer_config.json", {"eos_token": "<|endoftext|>"})):
        values = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(values | end))
    return model


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CollectServer]:
    folder = tmp_path_factory.mktemp("endless")
    options = ("--max-tokens", "8192", "--num-answers", "4")
    with collect_server(folder, *options, model=str(endless_model(folder))) as server:
        server.wait_until_loaded()
        yield server


def seconds_to_answer(server: CollectServer) -> float:
    """Of one token, with whatever the server has to do before."""
    began = time.monotonic()
    body = {"messages": [{"role": "user", "content": "Hi"}], "num_answers": 1, "max_tokens": 1}
    with server.client() as client:
        assert "event: end" in client.post("/api/answers", json=body).text
    return time.monotonic() - began


@pytest.mark.parametrize("way", ["Escape", "close", "reload"])
def test_a_cancelled_request_stops_generating(endless: CollectServer, browser: Browser, way: str) -> None:
    view = endless.open_page(browser)
    view.send("Never end")
    view.wait_for_status("Answering")
    if way == "Escape":
        view.press("Escape")
        view.wait_for_status("Stopped.")
        assert view.page.locator("#prompt").input_value() == "Never end" and view.turns() == []
    elif way == "reload":
        view.page.reload()
    else:
        view.page.close()
    assert seconds_to_answer(endless) < 5
    assert endless.rows() == []
    if way != "close":
        view.page.close()


def test_a_waiting_request_that_is_cancelled_is_never_answered(endless: CollectServer, browser: Browser) -> None:
    first, second = endless.open_page(browser), endless.open_page(browser)
    for view in (first, second):
        view.send("Never end")
    first.wait_for_status("Answering")
    second.press("Escape")
    first.press("Escape")
    first.wait_for_status("Stopped.")
    assert seconds_to_answer(endless) < 5
    for view in (first, second):
        assert view.opened.errors == []
        view.page.close()


def test_killed_server(tmp_path: Path, browser: Browser) -> None:
    with collect_server(tmp_path, *SHORT) as server:
        server.wait_until_loaded()
        view = server.open_page(browser)
        view.ask("One")
        view.press("1")
        view.wait_for_status("Saved.")
        server.kill()
        assert [row["prompt"] for row in server.rows()] == ["One"]
        view.press("Escape", "n")
        view.page.keyboard.type("Two")
        view.press("Enter")
        view.wait_for_error("The server can't be reached. The prompt is kept.")
        assert view.page.locator("#prompt").input_value() == "Two"
        server.start()
        view.wait_for_status("Connected again.")
        assert view.page.locator("#error").is_hidden() and view.counts == "1 preference"
        view.press("Enter")
        view.wait_for_answers()
        server.kill()
        view.press("1")
        view.wait_for_error("This verdict is not saved")
        assert len(server.rows()) == 1
        server.start()
        view.wait_for_status("Connected again.")
        view.press("2")
        view.wait_for_status("Saved.")
        assert [row["prompt"] for row in server.rows()] == ["One", "Two"]
        assert all("ERR_CONNECTION_" in error for error in view.opened.errors)
        view.page.close()


def test_server_killed_while_it_answers(tmp_path: Path, browser: Browser) -> None:
    with collect_server(tmp_path, "--max-tokens", "8192", model=str(endless_model(tmp_path))) as server:
        view = server.open_page(browser)
        view.send("Never end")
        view.wait_for_status("Answering")
        server.kill()
        view.wait_for_error("The server can't be reached. The prompt is kept.")
        assert view.page.locator("#prompt").input_value() == "Never end" and view.answers() == []
        view.page.close()


def test_prompts_are_resumed_where_they_were_left(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "prompts.txt").write_text("Alpha\nBeta\nGamma\nDelta\n")
    with collect_server(tmp_path, *SHORT, "--prompts", str(tmp_path / "prompts.txt")) as server:
        view = server.open_page(browser)
        for key in ("1", "t", "Space"):
            view.wait_for_answers()
            (prompt,) = view.turns()
            view.press(key)
            wait_for(lambda prompt=prompt: view.turns() not in ([], [prompt]))  # type: ignore[misc]
        view.wait_for_answers()
        assert view.turns() == ["Delta"]
        view.page.close()
        server.kill()
        server.start()
        view = server.open_page(browser)
        for prompt in ("Gamma", "Delta"):  # the one that was skipped, and the one without a verdict
            view.wait_for_answers()
            assert view.turns() == [prompt]
            view.press("2")
            wait_for(lambda prompt=prompt: view.turns() != [prompt])  # type: ignore[misc]
        view.wait_for_status("All prompts of the file have verdicts.")
        assert [row["prompt"] for row in server.rows()] == ["Alpha", "Beta", "Gamma", "Delta"]
        assert view.opened.errors == []
        view.page.close()


def test_a_model_that_fails_to_load(tmp_path: Path, browser: Browser) -> None:
    model = Path(shutil.copytree(ROOT / MODEL, tmp_path / "broken"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": 77}))
    with collect_server(tmp_path, model=str(model)) as server:
        view = server.open_page(browser)
        view.page.locator("#error:not([hidden])").wait_for()
        assert "load" in view.page.locator("#error").inner_text()
        assert view.page.locator("#ask").is_disabled()
        view.page.close()


def test_full_disk(tmp_path: Path, browser: Browser) -> None:
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(FULL_DISK)
    full = tmp_path / "full"
    path = os.pathsep.join([str(tmp_path / "patch"), os.environ.get("PYTHONPATH", "")])
    with collect_server(tmp_path, *SHORT, FULL=str(full), PYTHONPATH=path) as server:
        view = server.open_page(browser)
        view.ask("One")
        view.press("1")
        view.wait_for_status("Saved.")
        before = server.output.read_bytes()
        view.ask("Two")
        full.touch()
        view.press("1")
        view.wait_for_error("No space left on device")
        assert "give the verdict again" in view.page.locator("#error").inner_text()
        assert server.output.read_bytes() == before and view.counts == "1 preference"
        full.unlink()
        view.press("1")
        view.wait_for_status("Saved.")
        assert view.counts == "2 preferences" and len(server.rows()) == 2
        view.page.close()


def test_ctrl_c(endless: CollectServer, tmp_path: Path) -> None:
    with collect_server(tmp_path) as server:
        server.wait_until_loaded()  # mlx's first compilation on the CPU is by system(), which ignores SIGINT meanwhile
        with server.client() as client:
            messages = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8192, "temperature": 5}
            with client.stream("POST", "/api/answers", json=messages) as response:
                next(response.iter_lines())
                began = time.monotonic()
                assert server.interrupt() == 130
        assert time.monotonic() - began < 10
        assert server.errors.read_text().splitlines()[-1].startswith("Ended.")
        session = next((tmp_path / "cache").rglob("collect/*.json"))
        assert session.stat().st_mode & 0o777 == 0o600


def test_port_in_use(endless: CollectServer, tmp_path: Path) -> None:
    port = endless.address.rpartition(":")[2]
    command = [*endless.command[:-6], "--output", str(tmp_path / "pairs.jsonl"), "--port", port]
    ended = subprocess.run(command, cwd=ROOT, env=endless.environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "`--port`: can't be used: Address already in use" in ended.stderr
