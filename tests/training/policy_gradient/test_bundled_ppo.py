"""PPO and RLOO on the bundled model: polite answers to unseen questions, close to the model that it starts from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import mostly_slow
from tests.training.policy_gradient.politeness import measure_politeness

EXAMPLE = Path(__file__).parents[3] / "examples" / "ppo.py"


@pytest.mark.parametrize("loss", mostly_slow(["ppo", "rloo"], 2))
def test_the_example_runs(tmp_path: Path, loss: str) -> None:
    command = [sys.executable, EXAMPLE, tmp_path, "1", loss]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("step 1: score 0.")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # three minutes on a machine with nothing else to do
@pytest.mark.parametrize("seed", [1])
def test_politeness_and_kl(tmp_path: Path, seed: int) -> None:
    subprocess.run([sys.executable, EXAMPLE, tmp_path, "44", "ppo", str(seed)], capture_output=True, check=True)
    after = measure_politeness(tmp_path / "adapter")
    assert after["polite"] >= 0.9 and after["fluent"] >= 0.95 and 0 < after["kl"] < 1, after
