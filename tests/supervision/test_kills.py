"""Fifty random moments at which the training process itself is killed and gone on with: not one byte is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.supervision.conftest import command
from tests.supervision.test_supervised import bytes_of, steps_done, trainer_of, wait_until

SIGNALS = (signal.SIGKILL, signal.SIGABRT, signal.SIGTERM, signal.SIGINT)
KILLS, RUNS = 50, 5


def writes(run: Path) -> int:
    """The process that has the folder; 0 where none has."""
    try:
        return trainer_of(run)
    except (OSError, ValueError):
        return 0


@pytest.mark.slow  # `test_kill_phases.py` kills fewer times, in every phase
@pytest.mark.parametrize("seed", range(RUNS))
def test_killed_and_resumed_is_the_same_to_the_byte(tmp_path: Path, whole: Path, seed: int) -> None:
    """Every step writes a checkpoint, so that most moments are in the middle of one."""
    run, rng, killed = tmp_path / "run", random.Random(seed), 0
    while killed < KILLS // RUNS:
        process = subprocess.Popen(
            command(run, "--no-supervise"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        at, number = steps_done(run) + rng.randrange(3), rng.choice(SIGNALS)
        wait_until(lambda at=at, process=process: steps_done(run) >= at and writes(run) == process.pid, process)
        time.sleep(rng.random() * 0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (-number, 128 + number, 0), err
        killed += 1
        if process.returncode == 0:
            break
    subprocess.run(command(run, "--no-supervise"), check=process.returncode != 0, capture_output=True)
    assert bytes_of(run) == bytes_of(whole)
