"""What all tests share: a tiny random float32 model with a tokenizer, and eight pairs TRL was run on."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser as browser
from tests.discovery.fake_models import machine as machine
from tests.hub.fixture import hub as hub
from tests.scheduling import ProcessesInOneWorker

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("COLUMNS", None)  # Rich keeps what it finds at import: a test that sets it would set it in vain
CACHE = tempfile.TemporaryDirectory(prefix="mlx-dpo-tests-")  # not the developer's own; it goes with the process
os.environ["XDG_CACHE_HOME"] = CACHE.name

TRL = Path(__file__).parent / "trl"
CHECKPOINT = TRL / "checkpoint"
PAIRS = TRL / "pairs.jsonl"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ProcessesInOneWorker | None:
    return ProcessesInOneWorker(config, log) if config.getvalue("dist") == "loadfile" else None


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "model"))


def pytest_unconfigure() -> None:
    CACHE.cleanup()


def pytest_collection_finish() -> None:
    """What collecting left stays to the end: no later garbage collection is to walk through it."""
    gc.collect()
    gc.freeze()
