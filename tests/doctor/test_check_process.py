"""Checks in a process of their own: one that ends the process is a failure by name, and the others still run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mlx_dpo.doctor import check_process
from mlx_dpo.doctor.check import CheckStatus
from mlx_dpo.doctor.check_process import run_checks_in_process
from mlx_dpo.utils.progress import Progress

MODULE = "tests.doctor.checks_in_a_process"


class Phases(Progress):
    def __init__(self) -> None:
        self.names: list[str] = []

    def begin(self, phase: str, unit: str = "") -> None:
        self.names.append(phase)


def test_a_check_that_ends_its_process_is_a_failure_and_the_others_run() -> None:
    phases = Phases()
    results = list(run_checks_in_process(f"{MODULE}:CHECKS", "engine", phases))
    assert phases.names[1:] == [result.name for result in results] == ["first", "crash", "error", "last"]
    assert [result.outcome.status.value for result in results] == ["passed", "failed", "failed", "warning"]
    assert results[1].outcome.detail == "ended by SIGABRT: [METAL] Command buffer execution failed"
    assert results[2].outcome.detail == "ValueError: no such kernel" and results[3].outcome.advice == "wait"


def test_checks_that_can_not_be_imported() -> None:
    (result,) = run_checks_in_process(f"{MODULE}_missing:CHECKS", "engine")
    assert (result.name, result.group, result.outcome.status) == ("self-tests", "engine", CheckStatus.FAILED)
    assert "No module named" in result.outcome.detail and "environment of its own" in str(result.outcome.advice)


def test_a_check_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_process, "CHECK_TIMEOUT", 5.0)
    hung, last = run_checks_in_process(f"{MODULE}:HANGING", "engine")
    assert hung.outcome.status is CheckStatus.FAILED and "longer than 5 s" in hung.outcome.detail
    assert last.outcome.status is CheckStatus.WARNING


def test_no_process_is_left_when_the_caller_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(popen(*args, **kw)) or started[-1])
    results = run_checks_in_process(f"{MODULE}:CHECKS", "engine")
    assert next(results).name == "first"
    results.close()  # type: ignore[attr-defined]
    assert [process.poll() is not None for process in started] == [True]
