"""--help: examples in every command, and no waiting for what only the commands themselves need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["", "train", "evaluate", "score", "compare", "report", "fuse", "export", "import", "push", "losses", "data"]
COMMANDS += ["sample", "label", "rounds", "demo", "plan", "cache", "doctor", "models", "collect"]
MODEL_CODE = {"mlx_lm", "transformers", "huggingface_hub"}
ARRAY_CODE = {"mlx", "numpy"}  # the help of some commands reads defaults from the losses, which import these
READ_LOSSES = {"train", "evaluate", "score", "rounds", "plan"}
MAX_CPU_SECONDS = 0.3  # of `mlx-dpo --help`
MAX_CPU_RATIO = 15  # to the CPU time of `python -c pass`, for machines on which that already takes more than 20 ms


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_model_code_and_has_examples(command: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mlx_dpo", *command.split(), "--help"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and "Usage" in ran.stdout
    assert command in ("", "data") or f"mlx-dpo {command}" in ran.stdout.split("Usage", 1)[1]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert "mlx_dpo" in imported
    assert imported & (MODEL_CODE | (set() if command in READ_LOSSES else ARRAY_CODE)) == set()


def cpu_seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """User and system time of a Python process, in seconds."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_takes_little_time(tmp_path: Path) -> None:
    """Bytecode is compiled by a first call, as pip and uv do or the first use does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = ["-m", "mlx_dpo", "--help"]
    cpu_seconds(command, environment)
    baseline = min(cpu_seconds(["-c", "pass"], environment) for _ in range(5))
    limit = max(MAX_CPU_SECONDS, MAX_CPU_RATIO * baseline)
    assert any(cpu_seconds(command, environment) < limit for _ in range(10))
