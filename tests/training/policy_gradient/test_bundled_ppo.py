"""PPO and RLOO on the bundled model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "ppo.py"


@pytest.mark.parametrize("loss", ["ppo", "rloo"])
def test_the_example_runs(tmp_path: Path, loss: str) -> None:
    command = [sys.executable, EXAMPLE, tmp_path, "1", loss]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("step 1: score 0.")
