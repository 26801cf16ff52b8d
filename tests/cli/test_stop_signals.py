"""Ctrl-C and SIGTERM at random moments of every command: it ends soon, without a traceback, and leaves nothing torn."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from typer.main import get_command

from mlx_dpo.cli.app import app
from mlx_dpo.demo import MODEL, PAIRS
from tests.conftest import TRL
from tests.forked import start_command

ADAPTER, PLENTY = TRL / "adapter", PAIRS / "train.jsonl"
CHECKPOINT = TRL / "checkpoint"
MAX_SECONDS = 5.0  # a second or two on an idle machine

COMMANDS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "plan": lambda out: ("plan", "--model", MODEL, "--data", PAIRS),
    "evaluate": lambda out: ("evaluate", "--model", CHECKPOINT, "--adapter-path", ADAPTER, "--data", PLENTY),
    "score": lambda out: (
        *("score", "--model", CHECKPOINT, "--adapter-path", ADAPTER, "--data", PLENTY),
        *("--output", out / "scores.jsonl", "--batch-size", 4),
    ),
    "sample": lambda out: (
        *("sample", "--model", CHECKPOINT, "--prompts", PLENTY, "--output", out / "samples.jsonl"),
        *("--max-tokens", 64),
    ),
    "label": lambda out: (
        *("label", PLENTY, "--judge", ADAPTER, "--judge-model", CHECKPOINT, "--output", out / "pairs.jsonl"),
    ),
    "compare": lambda out: (
        *("compare", "--model", CHECKPOINT, "--adapter-path", ADAPTER, "--prompts", PAIRS / "valid.jsonl"),
        *("--num-prompts", 16, "--max-tokens", 64),
    ),
    "fuse": lambda out: (
        *("fuse", "--model", CHECKPOINT, "--adapter-path", ADAPTER, "--calibrate", PAIRS / "valid.jsonl"),
        *("--save-path", out / "fused", "--force"),
    ),
    "export": lambda out: (
        *("export", "--format", "peft", "--model", CHECKPOINT, "--adapter-path", ADAPTER),
        *("--base-model", "user/base", out / "peft"),
    ),
    "report": lambda out: (
        "report",
        TRL.parent / "compatibility" / "runs" / "finished",
        "--output",
        out / "report.html",
    ),
    "models": lambda out: ("models", MODEL, CHECKPOINT),
    "data check": lambda out: ("data", "check", PLENTY, "--model", MODEL),
    "data convert": lambda out: ("data", "convert", PLENTY, out / "pairs.jsonl"),
    "data fix": lambda out: ("data", "fix", PLENTY, out / "fixed.jsonl"),
}
# Those that are over in an instant, or have tests of their own: train in supervision/ and training/, rounds in rounds/,
# push in export/, doctor beside this file, collect in web/.
OTHERS = {"train", "rounds", "demo", "push", "import", "losses", "cache", "collect", "doctor", "data show"}


def test_every_command_is_tested() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    data = {f"data {name}" for name in commands.pop("data").commands}
    assert {*commands, *data} == {*COMMANDS, *OTHERS}


def check_end(code: int, number: int, seconds: float, output: Path, out: Path) -> None:
    """`code` may be that of a command that was over before, or of the system: Python was not yet or no more there."""
    text = output.read_text(errors="replace")
    assert code in (0, 2, 128 + number, -number), text
    assert seconds < MAX_SECONDS
    assert "Traceback" not in text and "Exception ignored" not in text, text
    assert not list(out.rglob("*.partial*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_it(tmp_path: Path, name: str, number: signal.Signals) -> None:
    rng, out = random.Random(f"{name} {number}"), tmp_path / "out"
    out.mkdir()
    process = start_command(COMMANDS[name](out), tmp_path / "output")
    process.join(rng.random() * 0.6)
    with suppress(ProcessLookupError):  # it was over before
        os.kill(process.pid, number)
    began = time.monotonic()
    process.join(60)
    assert process.exitcode is not None
    check_end(process.exitcode, number, time.monotonic() - began, tmp_path / "output", out)


IN_A_CALLBACK = """
import os, sys, time, weakref
from mlx_dpo.utils.signals import exit_on_stop_signals

class Value: ...

def callback(_):  # Python ignores an exception that is raised in here
    os.kill(os.getpid(), int(sys.argv[1]))
    sum(range(10))

exit_on_stop_signals()
value = Value()
reference = weakref.ref(value, callback)
del value
time.sleep(10)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_that_python_ignores_is_sent_again(number: signal.Signals) -> None:
    command = [sys.executable, "-c", IN_A_CALLBACK, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (128 + number, "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_it_at_any_moment(tmp_path: Path, name: str, seed: int) -> None:
    """From a shell, loading included."""
    rng, out = random.Random(f"{name} {seed}"), tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "mlx_dpo", *map(str, COMMANDS[name](out))]
    for number in (signal.SIGINT, signal.SIGTERM):
        with (tmp_path / "output").open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
            time.sleep(0.5 + rng.random() * 5)  # Python itself prints a traceback while it starts
            process.send_signal(number)
            began = time.monotonic()
            process.wait(60)
        check_end(process.returncode, number, time.monotonic() - began, tmp_path / "output", out)
