"""The command that is killed, and runs that nobody disturbed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINT, PAIRS

STEPS = 20


def command(run: Path, *more: object) -> list[str]:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--valid-data", PAIRS, "--adapter-path", run, "--iters", STEPS)
    flags += ("--batch-size", 3, "--save-every", 1, "--steps-per-eval", 10, "--dropout", 0.1, "--optimizer", "adamw")
    flags += ("--learning-rate", 1e-3, "--samples", 0)
    return [sys.executable, "-m", "mlx_dpo", "train", *map(str, (*flags, *more))]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(run), check=True, capture_output=True)
    return run


@pytest.fixture(scope="session")
def undropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    run = tmp_path_factory.mktemp("undropped") / "run"
    subprocess.run(command(run, "--dropout", 0), check=True, capture_output=True)
    return run
