"""Ranks started by mlx.launch and --workers: what they print, how they end, what a killed one leaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.conftest import CHECKPOINT, PAIRS
from tests.distributed.test_data_parallel import max_difference
from tests.distributed.worker import run_training

MACHINES_PAGE = Path(__file__).parents[2] / "docs" / "machines.md"
SETTINGS: dict[str, Any] = {
    "model": str(CHECKPOINT),
    "data": str(PAIRS),
    "valid_data": str(PAIRS),
    "iters": 60,
    "batch_size": 3,
    "save_every": 5,
    "learning_rate": 1e-3,
}
SOON = 30.0  # seconds in which all ranks are to have ended
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks by Linux's /proc")


def flags(settings: dict[str, Any]) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def start_process() -> Iterator[Any]:
    """Starts commands, which are killed at the end of the test."""
    processes = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


def train(run: Path, *more: str, workers: int = 2) -> list[str]:
    command = [sys.executable, "-m", "mlx_dpo", "train", "--workers", str(workers), *flags(SETTINGS)]
    return [*command, "--adapter-path", str(run), "--samples", "0", *more]


def steps_done(run: Path) -> int:
    return max((int(p.name) for p in run.glob("checkpoints/[0-9]*")), default=0)


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.01)


def processes_of(run: Path, rank: int, module: str) -> list[int]:
    """The processes of a rank that were started by `python -m module` for this run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode()
            environment = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        if module in arguments.split("\0") and str(run) in arguments and f"MLX_RANK={rank}" in environment:
            found.append(int(folder.name))
    return found


def documented_command(start: str) -> list[str]:
    (line,) = (line for line in MACHINES_PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(start))
    return shlex.split(line)


def in_place_of(command: list[str], **known: object) -> list[str]:
    """The command with other values: the files it names do not exist here."""
    for name, value in known.items():
        command[command.index(f"--{name}") + 1] = str(value)
    return command


def check_line(command: list[str], tmp_path: Path, start_process: Any) -> None:
    run, settings = tmp_path / "run", {**SETTINGS, "iters": 5}
    process = start_process([*command, *flags({**settings, "adapter_path": run, "samples": 0}), "--json"])
    out, err = process.communicate(timeout=120)
    summary = json.loads(out)
    assert summary["steps"] == 5 and summary["run"] == str(run)
    assert err.count("Training ") == err.count("2 processes; each sends") == err.count("held out at step 5") == 1
    run_training(tmp_path, "alone", settings)
    assert max_difference(run, tmp_path / "alone") <= 1e-5


@pytest.mark.slow
def test_the_documented_command(tmp_path: Path, start_process: Any) -> None:
    command = documented_command("mlx.launch -n 2 --backend ring ")
    check_line(in_place_of(command, model=CHECKPOINT, data=PAIRS), tmp_path, start_process)


@pytest.mark.slow
def test_the_documented_command_with_a_hosts_file(tmp_path: Path, start_process: Any) -> None:
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    command = in_place_of(documented_command("mlx.launch --hostfile "), hostfile=hosts, model=CHECKPOINT, data=PAIRS)
    (place,) = (i for i, word in enumerate(command) if word.endswith("/bin/mlx-dpo"))
    command[place] = str(Path(sys.executable).with_name("mlx-dpo"))
    check_line(command, tmp_path, start_process)


@pytest.mark.slow
def test_workers_on_this_machine_and_what_they_end_with(tmp_path: Path, start_process: Any) -> None:
    run = tmp_path / "run"
    process = start_process([*train(run), "--iters", "5"])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "2 processes; each sends" in err
    assert out.count("reward accuracy") == 1
    for name in ("report.html", "README.md"):
        text = (run / name).read_text(encoding="utf-8")
        assert "mlx-dpo train --workers 2" in text and "2 processes" in text
    process = start_process([*train(run), "--iters", "5"])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("this folder holds a finished run") == 1


@pytest.mark.slow
def test_rows_that_come_by_stdin_can_t_be_shared(tmp_path: Path, start_process: Any) -> None:
    process = start_process([*train(tmp_path / "run"), "--data", "-"])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("`--data`: stdin can't be used with several processes") == 1


def test_ctrl_c_saves_all(tmp_path: Path, start_process: Any) -> None:
    run = tmp_path / "run"
    process = start_process([*train(run), "--iters", "100000"])
    wait_until(lambda: steps_done(run), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 130
    assert err.count("stopped after step") == err.count("stopping; finished steps are saved") == 1
    assert "Resume with: mlx-dpo train --workers 2" in err
    assert f"stopped after step {steps_done(run)}" in err


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_training_process_is_restarted(tmp_path: Path, start_process: Any, rank: int) -> None:
    run = tmp_path / "run"
    process = start_process(train(run))
    wait_until(lambda: steps_done(run) >= 10, process)
    (training,) = processes_of(run, rank, "mlx_dpo.supervision.training_process")
    os.kill(training, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err.count(f"rank {rank}: the training process was ended by SIGKILL") == 1
    assert err.count("the training process lost connection to another rank") == rank  # rank 0 says it, of others
    run_training(tmp_path, "alone", SETTINGS)
    assert max_difference(run, tmp_path / "alone") <= 1e-5


@needs_proc
@pytest.mark.slow
def test_a_rank_that_dies_when_rank_0_alone_has_work_left_is_not_missed(tmp_path: Path, start_process: Any) -> None:
    run = tmp_path / "run"
    process = start_process([*train(run), "--iters", "3", "--samples", "64"])
    stderr = ""
    while "held out at step 3" not in stderr:  # the samples come next, of rank 0
        stderr += process.stderr.readline()
    time.sleep(1)  # by then rank 1 has reported that to its supervisor
    for training in processes_of(run, 1, "mlx_dpo.supervision.training_process"):
        os.kill(training, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "SIGKILL" not in err
    assert (run / "report.html").exists() and "Nothing looks wrong" not in stderr


@needs_proc
@pytest.mark.parametrize("supervised", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_lost_rank_ends_all_and_leaves_a_checkpoint(tmp_path: Path, start_process: Any, supervised: bool) -> None:
    run = tmp_path / "run"
    process = start_process([*train(run), "--iters", "100000", *(() if supervised else ["--no-supervise"])])
    wait_until(lambda: steps_done(run) >= 10, process)
    (whole_rank,) = processes_of(run, 1, "mlx_dpo")
    os.kill(whole_rank, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=SOON)
    assert process.returncode
    assert "Node with rank 1 exited with code -9" in err
    while processes_of(run, 0, "mlx_dpo.supervision.training_process") + processes_of(
        run, 1, "mlx_dpo.supervision.training_process"
    ):
        assert time.monotonic() - began < SOON
        time.sleep(0.1)
    left = steps_done(run)
    assert isinstance(mx.load(str(run / "checkpoints" / f"{left:07d}" / "adapters.safetensors")), dict)
    again = run_training(tmp_path, "run", {**SETTINGS, "iters": 100000}, stop_after=left + 2)
    assert again["ended"] == f"interrupted at {left + 2}" and len(again["losses"]) == 2
