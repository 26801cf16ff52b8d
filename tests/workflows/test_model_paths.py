"""The baseline of forward paths that the nightly workflow compares newer versions of mlx-lm with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forward.families import CONFIGS, sharing

ROOT = Path(__file__).parent.parent.parent
BASELINE = ROOT / "docs" / "benchmarks" / "model-paths.json"
PATHS = json.loads(BASELINE.read_text(encoding="utf-8"))["paths"]
FAIL_ON_LINUX = {"bitnet", "recurrent_gemma"}  # a Metal kernel; mlx-lm's own fault


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_baseline_is_what_other_tests_hold(model_type: str) -> None:
    start = "fails" if model_type in FAIL_ON_LINUX else sharing(model_type).name.lower()
    assert PATHS[model_type].startswith(start)


@pytest.mark.parametrize(("before", "status"), [(PATHS["mamba"], 0), ("none, whole model", 1)])
def test_another_path_is_listed(tmp_path: Path, before: str, status: int) -> None:
    baseline = tmp_path / "paths.json"
    baseline.write_text(json.dumps({"versions": {"mlx": "0.1", "mlx-lm": "0.1"}, "paths": {**PATHS, "mamba": before}}))
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "model_paths.py"),
        "llama",
        "mamba",
        "--compare",
        str(baseline),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == status, ran.stderr
    assert ("| `mamba` | none, whole model | one_prompt, head split |" in ran.stdout) == bool(status)
    assert "`llama`" not in ran.stdout
