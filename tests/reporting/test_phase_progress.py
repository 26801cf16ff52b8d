"""What long commands print of their progress: in a log file plain lines, at most one every ten seconds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_dpo.cli.console import SafeConsole
from mlx_dpo.reporting.phase_progress import PhaseProgress
from tests.cli.conftest import CommandResult, mlx_dpo  # noqa: F401 (a fixture)
from tests.conftest import CHECKPOINT, PAIRS, TRL


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def run_phase(clock: Clock, *, is_terminal: bool, start: int = 0) -> str:
    """Hundred pairs, one a second."""
    file = io.StringIO()
    with PhaseProgress(SafeConsole(file=file, force_terminal=is_terminal, width=200), clock) as progress:
        progress.begin("Loading")
        count = progress.counter("Scoring", "pairs")
        for done in range(start, 101):
            count(done, 100)
            clock.seconds += 1
    return file.getvalue()


def test_in_a_log_file_a_line_a_phase_and_one_every_ten_seconds() -> None:
    lines = run_phase(Clock(), is_terminal=False).splitlines()
    assert lines[:4] == ["Loading", "Scoring", "Scoring: 10/100 pairs, 1:30 left", "Scoring: 20/100 pairs, 1:20 left"]
    assert lines[-1] == "Scoring: 100/100 pairs, 0:00 left" and len(lines) == 12


def test_what_was_done_before_does_not_make_it_look_faster() -> None:
    lines = run_phase(Clock(), is_terminal=False, start=50).splitlines()
    assert lines[2] == "Scoring: 60/100 pairs, 0:40 left"


def test_a_share_is_a_percentage() -> None:
    clock, file = Clock(), io.StringIO()
    progress = PhaseProgress(SafeConsole(file=file), clock)
    progress.begin("Reading x.jsonl")
    clock.seconds = 11
    progress.update(0.25, 1)
    assert file.getvalue() == "Reading x.jsonl\nReading x.jsonl: 25%\n"


def test_a_terminal_has_one_line_that_changes() -> None:
    shown = run_phase(Clock(), is_terminal=True)
    assert "\x1b[" in shown and "\nScoring: 10/100" not in shown


DATA, ADAPTER = ("--data", PAIRS), ("--adapter-path", TRL / "adapter")
COMMANDS: dict[str, tuple[list[object], list[str]]] = {
    "plan": ([*DATA], ["Reading", "Loading the model", "Trying the largest micro-batch"]),
    "plan --config-only": (["--config-only"], ["Counting the memory of a training step"]),
    "score": ([*DATA, *ADAPTER, "--output", "scores.jsonl"], ["Reading the rows and loading the model", "Scoring"]),
    "evaluate": ([*DATA, *ADAPTER], ["Reading the pairs", "Loading", "Evaluating"]),
    "fuse": (
        [*ADAPTER, "--calibrate", PAIRS, "--bits", "none", "--force", "--save-path", "fused"],
        ["Loading the model and the pairs", "Measuring the base model", "Measuring the adapter", "Writing fused"],
    ),
    "export": (["peft", "--format", "peft", *ADAPTER, "--base-model", "me/base"], ["Loading", "Writing peft"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_long_command_names_its_phases_on_stderr(
    name: str,
    mlx_dpo: Callable[..., CommandResult],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, phases = COMMANDS[name]
    ran = mlx_dpo(name.split()[0], *arguments, "--model", CHECKPOINT, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)  # and nothing else is on stdout
    lines = ran.err.splitlines()
    begun = [next(i for i, line in enumerate(lines) if line.startswith(phase)) for phase in phases]
    assert begun == sorted(begun)
