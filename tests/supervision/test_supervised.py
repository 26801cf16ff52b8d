"""A run in a process of its own, which is killed: it goes on by itself, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.marks import mostly_slow
from tests.supervision.conftest import STEPS, command


def bytes_of(run: Path) -> bytes:
    return (run / "adapters.safetensors").read_bytes()


def wait_until(condition: object, process: subprocess.Popen[str]) -> bool:
    """False where the process ended before."""
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def steps_done(run: Path) -> int:
    return max((int(p.name) for p in run.glob("checkpoints/[0-9]*")), default=0)


def trainer_of(run: Path) -> int:
    """The process that trains, as it says itself."""
    return int((run / ".lock").read_text())


def kill_at_random(run: Path, process: subprocess.Popen[str], rng: random.Random, number: int, times: int) -> int:
    """Kill the training process at random moments of its work; returns how often that was done."""
    killed = 0
    for _ in range(times):
        at = steps_done(run) + rng.randrange(1, 5)
        if not wait_until(lambda at=at: steps_done(run) >= at, process):
            break
        time.sleep(rng.random() * 0.03)  # somewhere in a step, or in the writing of a checkpoint
        try:
            os.kill(trainer_of(run), number)
        except (OSError, ValueError):  # it has just ended, or not yet begun
            continue
        killed += 1
    return killed


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, pytest.param(signal.SIGBUS, marks=pytest.mark.slow)], ids=lambda n: n.name
)
def test_a_crash_is_gone_on_from(tmp_path: Path, whole: Path, number: signal.Signals) -> None:
    run, rng = tmp_path / "run", random.Random(number)
    process = subprocess.Popen(command(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = kill_at_random(run, process, rng, number, 2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert killed and err.count(f"was ended by {number.name}, a crash in compiled code. Resuming from") == killed
    assert bytes_of(run) == bytes_of(whole)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGABRT], ids=lambda n: n.name
)
def test_with_less_memory_after_what_may_be_memory(tmp_path: Path, undropped: Path, number: signal.Signals) -> None:
    """Without dropout, whose draws follow the micro-batches."""
    run, rng = tmp_path / "run", random.Random(number)
    process = subprocess.Popen(command(run, "--dropout", 0), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = kill_at_random(run, process, rng, number, 2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert killed and err.count(f"was ended by {number.name}") == killed
    assert "with micro-batches of 50% the size." in err
    assert killed < 2 or "and gradient checkpointing of all layers." in err
    for name, tensor in mx.load(str(undropped / "adapters.safetensors")).items():
        ours = mx.load(str(run / "adapters.safetensors"))[name]
        np.testing.assert_allclose(np.array(ours), np.array(tensor), atol=1e-5)


def test_it_gives_up_after_three_deaths_without_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(run, "--save-every", 0), stderr=subprocess.PIPE, text=True)
    for _ in range(3):
        metrics = run / "metrics.jsonl"
        assert wait_until(lambda metrics=metrics: metrics.exists() and metrics.stat().st_size, process)
        number = trainer_of(run)
        os.kill(number, signal.SIGSEGV)
        metrics.unlink()
        wait_until(
            lambda number=number: not Path(f"/proc/{number}").exists() if sys.platform == "linux" else True, process
        )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err
    assert "crashed 3 times without a checkpoint" in err and err.count("SIGSEGV") >= 5


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    tmp_path: Path, whole: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: steps_done(run) >= 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "stopped after step" in err and "--resume" in err and "Traceback" not in err
    subprocess.run(command(run, "--resume", "--no-supervise"), check=True, capture_output=True)
    assert bytes_of(run) == bytes_of(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
@pytest.mark.parametrize("delay", mostly_slow([0.1, 0.0, 0.03, 0.3, 0.6, 1.0], 6))
def test_a_signal_while_the_training_process_is_loading(tmp_path: Path, delay: float) -> None:
    """Python itself would print a traceback until the process handles signals."""
    process = subprocess.Popen(command(tmp_path / "run"), stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: children.read_text().strip() != "", process)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err, err


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(run, "--iters", 100000), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: steps_done(run) >= 2, process)
    trainer = trainer_of(run)
    os.kill(trainer, signal.SIGSTOP)  # so that it does not end after its step
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)


def test_a_supervisor_that_is_killed_leaves_a_saved_run(tmp_path: Path, whole: Path) -> None:
    """Nobody hears the training process any more: it ends after its step, saved."""
    run = tmp_path / "run"
    process = subprocess.Popen(command(run), stderr=subprocess.DEVNULL)
    wait_until(lambda: steps_done(run) >= 3, process)
    trainer = trainer_of(run)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while (run / ".lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert 3 <= steps_done(run) < STEPS
    del trainer
    subprocess.run(command(run, "--no-supervise"), check=True, capture_output=True)
    assert bytes_of(run) == bytes_of(whole)


def test_a_mistake_and_a_fault_come_through(tmp_path: Path) -> None:
    wrong = subprocess.run(command(tmp_path / "run", "--beta", "-1"), capture_output=True, text=True)
    assert wrong.returncode == 2 and "`--beta`" in wrong.stderr
    missing = subprocess.run(command(tmp_path / "run", "--data", tmp_path / "no.jsonl"), capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stderr.count("error:") == 1 and "no such file" in missing.stderr
    told = subprocess.run(command(tmp_path / "run", "--iters", 1, "--json"), capture_output=True, text=True, check=True)
    assert json.loads(told.stdout)["steps"] == 1


def test_the_supervisor_loads_no_model_code() -> None:
    """It only watches: that costs it no second of its own before the child starts, and no memory beside it."""
    modules = (
        "mlx_dpo.cli.train",
        "mlx_dpo.cli.run_listeners",
        "mlx_dpo.supervision.supervisor",
        "mlx_dpo.export.push.checkpoint_pusher",
    )
    code = (
        f"import {', '.join(modules)}, sys; print([name for name in ('mlx_lm', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
