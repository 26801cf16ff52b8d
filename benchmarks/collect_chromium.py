"""`mlx-dpo collect` in a process of its own, and Chromium: shared by collect_latency.py and collect_screenshots.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from processes import with_blas

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "mlx_dpo" / "demo" / "model"


@contextmanager
def collect_page(folder: Path, *flags: object) -> Iterator[str]:
    """The server, started in a folder with some flags; yields the page's address, with the token."""
    command = [sys.executable, "-m", "mlx_dpo", "collect", "--no-browser", "--json", *map(str, flags)]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**with_blas(), "XDG_CACHE_HOME": cache, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()
            process.wait()


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser. OpenBLAS, which is preloaded for mlx, would crash it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    os.environ.pop("LD_PRELOAD", None)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()
