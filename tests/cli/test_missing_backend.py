"""Linux, where pip installs mlx without a backend unless an extra names one: one sentence, with the install line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What importing mlx.core raises where mlx is not installed, and where it is but its library is not.
IMPORTS = {
    "not installed": "raise ModuleNotFoundError(\"No module named 'mlx'\", name='mlx')",
    "without its library": "raise ImportError('libmlx.so: cannot open shared object file: No such file or directory')",
    "another cause": "raise ImportError('symbol not found')",
}


def run(folder: Path, cause: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process whose import of mlx fails."""
    (folder / "mlx").mkdir()
    (folder / "mlx" / "__init__.py").write_text(IMPORTS[cause])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    command = [sys.executable, "-m", "mlx_dpo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize("command", ["demo", "losses"])
@pytest.mark.parametrize("cause", ["not installed", "without its library"])
def test_a_missing_backend_is_one_sentence(tmp_path: Path, cause: str, command: str) -> None:
    ran = run(tmp_path, cause, command)
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("error: mlx has no backend here\nInstall") and ran.stderr.count("\n") == 2
    assert "mlx-dpo[cpu]" in ran.stderr or sys.platform == "darwin"
    assert [path.name for path in tmp_path.iterdir()] == ["mlx"], "nothing is begun"


def test_help_needs_no_backend(tmp_path: Path) -> None:
    ran = run(tmp_path, "not installed", "train", "--help")
    assert ran.returncode == 0 and "--learning-rate" in ran.stdout


def test_an_import_that_fails_otherwise_keeps_its_traceback(tmp_path: Path) -> None:
    ran = run(tmp_path, "another cause", "losses")
    assert ran.returncode == 1 and "Traceback" in ran.stderr and "symbol not found" in ran.stderr
