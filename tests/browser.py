"""A real Chromium that opens pages; one for all tests of a process, since playwright starts only one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Opened:
    """A page in the browser, with its errors and the requests it made."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """Opens files and addresses at a width and in a theme."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium

    def open(self, file: Path, width: int = 1200, theme: str = "light") -> Opened:
        return self.open_url(file.resolve().as_uri(), width, theme)

    def open_url(self, url: str, width: int = 1200, theme: str = "light") -> Opened:
        page = self.chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        opened = Opened(page)
        page.on("console", lambda message: opened.errors.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(url)
        page.wait_for_load_state("load")
        return opened


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as started:
        # OpenBLAS, which the Makefile preloads for mlx, crashes Chromium at its start.
        plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"], env=plain)
        yield Browser(chromium)
        chromium.close()
