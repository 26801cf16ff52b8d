"""The command as a process: Ctrl-C saves, says how to go on, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CHECKPOINT, PAIRS


def command(run: Path, *more: object) -> list[str]:
    flags = ("--model", CHECKPOINT, "--data", PAIRS, "--valid-data", PAIRS, "--adapter-path", run, "--iters", 40)
    return [sys.executable, "-m", "mlx_dpo", "train", *map(str, (*flags, "--batch-size", 2, "--samples", 0, *more))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(run), check=True, capture_output=True)
    return run


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("when", "number", "flags"),
    [
        pytest.param(0.0, signal.SIGINT, (), marks=pytest.mark.slow),
        pytest.param(0.2, signal.SIGINT, (), marks=pytest.mark.slow),
        (0.0, signal.SIGTERM, ("--no-supervise",)),
    ],
)
def test_a_signal_saves_and_resume_ends_the_same(
    tmp_path: Path, whole: Path, when: float, number: signal.Signals, flags: tuple[str, ...]
) -> None:
    cut = tmp_path / "cut"
    process = subprocess.Popen(command(cut, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = cut / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and "grad_norm" in metrics.read_text(), process)
    time.sleep(when)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, (out, err)
    assert "--resume" in err and "Traceback" not in err
    assert list((cut / "checkpoints").iterdir())
    resumed = subprocess.run(command(cut, "--resume"), capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (cut / "adapters.safetensors").read_bytes() == (whole / "adapters.safetensors").read_bytes()


def test_ctrl_c_before_training_ends_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*command(tmp_path / "run"), "--data", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(3)  # it waits for rows
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
