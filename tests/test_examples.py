"""The examples run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlx_dpo.config import TrainConfig, read_yaml

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_library(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, EXAMPLES / "library.py", tmp_path], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "step 15" in ran.stdout and "held-out reward accuracy" in ran.stdout


def test_config() -> None:
    assert TrainConfig.from_mapping(read_yaml(EXAMPLES / "run.yaml")).epochs == 2
