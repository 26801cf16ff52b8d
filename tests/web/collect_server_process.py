"""`mlx-dpo collect` in a process of its own, as a person starts it, and its page in a real browser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.browser import Browser, Opened

MODEL = "mlx_dpo/demo/model"
ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 120


class CollectServer:
    """A server that was started with a file to write to; `start` starts the same command again after `kill`."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        model: str | None = MODEL,
        output: str = "pairs.jsonl",
        **environment: str,
    ) -> None:
        self.folder, self.output = folder, folder / output
        self.command = [sys.executable, "-m", "mlx_dpo", "collect", "--no-browser", "--json"]
        self.command += ["--model", model] if model else []
        self.command += ["--output", str(self.output), *options]
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment}
        self.errors = folder / "stderr.txt"
        self.start()

    def start(self) -> None:
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=errors
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        self.url = str(json.loads(line)["url"])
        self.address = f"http://{urlsplit(self.url).netloc}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)

    def client(self) -> httpx.Client:
        """A browser's place: with the cookie, and with the Origin that a POST needs."""
        client = httpx.Client(base_url=self.address, headers={"Origin": self.address}, timeout=60)
        client.cookies = httpx.get(self.url).cookies
        return client

    def wait_until_loaded(self) -> dict[str, Any]:
        with self.client() as client:
            wait_for(lambda: client.get("/api/state").json()["is_ready"], START_SECONDS)
            return dict(client.get("/api/state").json())

    def rows(self, name: str = "pairs.jsonl") -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def open_page(self, browser: Browser, **options: Any) -> CollectView:
        view = CollectView(browser.open_url(self.url, **options))
        view.page.locator("header").wait_for()  # the page that keeps the token leads on to this one
        return view


@contextmanager
def collect_server(folder: Path, *options: str, **settings: Any) -> Iterator[CollectServer]:
    server = CollectServer(folder, *options, **settings)
    try:
        yield server
    finally:
        server.kill()
    assert "Traceback" not in server.errors.read_text()


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't happen"
        time.sleep(0.05)


class CollectView:
    """What a person does in the collecting view, by the keyboard."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.page = opened, opened.page
        self.page.set_default_timeout(20_000)
        self.dialogs: list[str] = []
        self.page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def send(self, text: str) -> None:
        """Type a prompt once the page is there."""
        self.page.locator("#prompt:focus").wait_for()
        self.page.keyboard.type(text)
        self.press("Enter")

    def ask(self, text: str) -> None:
        """Type a prompt, and wait for answers that differ; a small model now and then says the same twice."""
        self.send(text)
        self.wait_for_answers()
        if len(set(self.answers())) < self.page.locator(".answer").count():
            self.press("Space")
            self.ask(text)

    def wait_for_answers(self) -> None:
        self.page.locator("#skip").wait_for()

    def wait_for_status(self, text: str) -> None:
        self.page.locator("#status", has_text=text).wait_for()

    def wait_for_error(self, text: str) -> None:
        self.page.locator("#error", has_text=text).wait_for()

    def answers(self) -> list[str]:
        return [str(text) for text in self.page.locator(".answer .text").all_inner_texts()]

    def turns(self) -> list[str]:
        return [str(text) for text in self.page.locator("#conversation .text").all_inner_texts()]

    @property
    def counts(self) -> str:
        return str(self.page.locator("#counts").inner_text())
