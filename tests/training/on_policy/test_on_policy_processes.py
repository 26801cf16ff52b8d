"""On-policy runs as processes: the command, its child process being killed, Ctrl-C, and two ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import CHECKPOINT, PAIRS, TRL
from tests.distributed.ranks import outputs, start_ranks
from tests.training.on_policy.runs import outcome, read_rollouts

JUDGE = """
import os, pathlib, signal
DEADLY, COUNT = pathlib.Path(__file__).with_name("deadly"), pathlib.Path(__file__).with_name("count")

def code_points(prompt, answer):
    COUNT.write_text(COUNT.read_text() + "." if COUNT.exists() else ".")
    if DEADLY.exists() and len(COUNT.read_text()) == int(DEADLY.read_text()):
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(map(ord, answer)) % 1000
"""


def command(folder: Path, run: Path, *more: object) -> list[str]:
    folder.mkdir(exist_ok=True)
    prompts, judge = folder / "prompts.txt", folder / "judge.py"
    prompts.write_text("".join(f"What is {number} times {number}?\n" for number in range(10)))
    judge.write_text(JUDGE)
    flags = ("--model", CHECKPOINT, "--init-adapter", TRL / "adapter", "--reference", "base", "--adapter-path", run)
    flags += ("--on-policy", "--prompts", prompts, "--judge", f"{judge}:code_points", "--max-tokens", 12)
    flags += ("--batch-size", 3, "--iters", 8, "--save-every", 3, "--steps-per-report", 2, "--samples", 0)
    return [sys.executable, "-m", "mlx_dpo", "train", *map(str, (*flags, *more))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, with its result."""
    folder = tmp_path_factory.mktemp("whole")
    more = ("--valid-data", PAIRS, "--json")
    done = subprocess.run(command(folder, folder / "run", *more), capture_output=True, text=True, check=True)
    (folder / "result.json").write_text(done.stdout)
    return folder / "run"


def test_the_command_and_its_page(whole: Path) -> None:
    result = json.loads((whole.parent / "result.json").read_text())
    assert result["steps"] == 8 and {"loss", "rewards/margins"} <= result["after"].keys()
    page = (whole / "report.html").read_text(encoding="utf-8")
    first, last = read_rollouts(whole)[0], read_rollouts(whole)[-1]
    assert "Answers over time" in page and first["prompt"] in page and f"Step {last['step']}" in page
    for chart in ("judge_reward", "answer_length", "entropy_kl", "variety"):
        assert f"data-chart={chart}" in page
    metrics = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert any("rollouts/reward" in line for line in metrics)


@pytest.mark.slow
@pytest.mark.parametrize("call", [17, 1, 5, 11, 23, 28, 31, 35, 40, 44])
def test_a_killed_child_is_restarted_and_ends_the_same(tmp_path: Path, whole: Path, call: int) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "deadly").write_text(str(call))
    done = subprocess.run(
        command(folder, tmp_path / "run", "--valid-data", PAIRS), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "restart" in done.stderr.lower() + done.stdout.lower()
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_ends_the_same(tmp_path: Path, whole: Path) -> None:
    run, more = tmp_path / "run", ("--valid-data", PAIRS)
    process = subprocess.Popen(
        command(tmp_path / "judge", run, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while len(read_rollouts(run)) < 6:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run was faster")
    assert process.returncode == 130 and "--resume" in err, (out, err)
    again = subprocess.run(command(tmp_path / "judge", run, "--resume"), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert outcome(run) == outcome(whole)


@pytest.mark.slow
def test_two_ranks_give_the_numbers_of_one(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    ranks = start_ranks(tmp_path / "ranks", 2, command(tmp_path / "judge", run, "--no-supervise"))
    outputs(ranks)
    keys = ("step", "prompt", "completions", "tokens", "scores", "chosen", "rejected")
    assert [[line[key] for key in keys] for line in read_rollouts(run)] == [
        [line[key] for key in keys] for line in read_rollouts(whole)
    ]
    assert largest_difference(run, whole) < 1e-5


def largest_difference(first: Path, second: Path) -> float:
    from safetensors.numpy import load_file

    tensors: list[dict[str, Any]] = [load_file(run / "adapters.safetensors") for run in (first, second)]
    return max(float(np.abs(tensors[0][name] - tensors[1][name]).max()) for name in tensors[0])


def test_the_card_says_what_it_was_trained_on(whole: Path) -> None:
    card = (whole / "README.md").read_text(encoding="utf-8")
    words = "trained on its own answers to 10 prompts of `prompts.txt`, compared by `judge.py:code_points`."
    assert words in card and str(whole.parent) not in card
