"""What a person does in the training view, in a real Chromium."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import expect

from tests.browser import Browser
from tests.web.collect_server_process import CollectServer, CollectView

PAIRS = [{"prompt": f"Question {i}", "chosen": f"A good answer {i}.", "rejected": f"Bad {i}"} for i in range(12)]
TRAINING_MS = 60_000


def write_pairs(server: CollectServer) -> None:
    server.output.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))


class TrainView(CollectView):
    """The page, with its training view shown."""

    def __init__(self, server: CollectServer, browser: Browser, **options: Any) -> None:
        super().__init__(browser.open_url(server.url, **options))
        self.server = server
        self.show()

    def show(self) -> None:
        self.page.get_by_role("link", name="Train", exact=True).click()
        expect(self.field("adapter_path")).not_to_have_value("")

    def field(self, name: str) -> Any:
        return self.page.locator(f"#train-{name}")

    def expect_title(self, text: str) -> None:
        expect(self.page.locator("#train-title")).to_contain_text(text, timeout=TRAINING_MS)

    def start(self, **settings: str) -> None:
        for name, value in settings.items():
            self.field(name).fill(value)
        expect(self.page.locator("#train-outline")).to_contain_text("to train on")
        self.page.get_by_role("button", name="Start training").click()
        expect(self.page.locator("#train-stop")).to_be_visible()

    def compare(self, prompt: str) -> None:
        self.page.locator("#comparison-prompt").click()
        self.page.keyboard.type(prompt)
        self.press("Enter")
        expect(self.page.locator("#comparison-first")).to_be_visible()
